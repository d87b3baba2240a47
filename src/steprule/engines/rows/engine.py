"""The rows engine: a sparse gradient's rows, updated as the eager engine would update them.

The rule runs on the rows that the gradient has; no other row of parameter or state is read or
written, so a step costs as much as the gradient has rows, whatever the table's size. On the CPU
a kernel does it (kernel.py); elsewhere, and where nothing can be compiled, rows are gathered,
updated and scattered.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

from torch import Tensor

from steprule.engines.dispatch_modes import is_watched
from steprule.engines.eager.update import advance, new_values, supply_scalars, write_array
from steprule.engines.engine import Leaf, Numbers, Runner
from steprule.engines.leaf_runner import LeafRunner
from steprule.language.form import Form


class RowsEngine:
    """Gathers rows, applies the rule, scatters them back."""

    name = "rows"
    by_address = False  # the kernel is only used where nobody watches

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuses dense gradients; the planner sends it no other."""
        return None if leaf.grad.is_sparse else "the gradient is dense"

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        return None

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        return LeafRunner(form, leaves, _update_each)


def _update_each(form: Form, leaves: Sequence[Leaf], numbers: Mapping[int, Numbers]) -> None:
    for leaf in leaves:
        _update(form, leaf, dict(numbers[leaf.group]))


def _update(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> None:
    kernel = None if is_watched() else _kernel()
    if kernel and kernel.takes(leaf, form) and kernel.has_kernel(form, leaf.grad.dtype):
        count = leaf.state["step"] if form.rule.counts_steps else None
        kernel.update_rows(form, leaf, scalars, float(count or 0))
        advance(leaf, count)
        return
    step = supply_scalars(form, leaf, scalars)
    grad = leaf.grad.coalesce()  # the update is not linear: each row may appear once
    indices = grad._indices().unbind(0)
    stored = {"param": leaf.param, **{name: leaf.state[name] for name in form.array_slots}}
    rows = {name: _gathered(tensor, indices) for name, tensor in stored.items()}
    state = {**leaf.state, **{name: rows[name] for name in form.array_slots}}
    part = replace(leaf, param=rows["param"], grad=grad._values(), state=state)
    new = new_values(form, part, part.param, scalars)
    for name, table in stored.items():
        write_array(part, name, new[name])
        _scatter(table, indices, rows[name])
    for name in form.scalar_slots:
        leaf.state[name].fill_(new[name])
    advance(leaf, step)


@functools.cache
def _kernel() -> ModuleType | None:
    """Return what has the kernel, whose import loads the compiler; None where that can't be."""
    try:
        from steprule.engines.rows import kernel
    except (ImportError, OSError):  # llvmlite, or the library in it
        return None
    return kernel


def _gathered(table: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    return table.index_select(0, indices[0]) if len(indices) == 1 else table[indices]


def _scatter(table: Tensor, indices: tuple[Tensor, ...], rows: Tensor) -> None:
    if len(indices) == 1:
        table.index_copy_(0, indices[0], rows)
    else:
        table.index_put_(indices, rows)
