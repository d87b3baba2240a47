"""The rows engine: a sparse gradient's rows, updated as the eager engine would update them.

The rule runs on the rows that the gradient has; no other row of parameter or state is read or
written, so a step costs as much as the gradient has rows, whatever the table's size. On the CPU
the fused kernel does it (fused_rows.py); elsewhere rows are gathered, updated and scattered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steprule.engines import Leaf, Numbers
from steprule.engines.batch import Batch, LeafBatch
from steprule.engines.eager.engine import advance, new_values, supply_scalars
from steprule.formats import format_of
from steprule.language.form import Form


class RowsEngine:
    """Gathers rows, applies the rule, scatters them back."""

    name = "rows"

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Takes sparse gradients only; the planner sends it no other."""
        return None if leaf.grad.is_sparse else "the gradient is dense"

    def apply(self, form: Form, leaves: Sequence[Leaf], numbers: Numbers) -> None:
        """Update the rows of each leaf in turn."""
        for leaf in leaves:
            _update(form, leaf, dict(numbers[leaf.group]))

    def batch(self, form: Form, leaves: Sequence[Leaf]) -> Batch:
        """The same leaves, to be updated again."""
        return LeafBatch(self, form, leaves)


def _update(form: Form, leaf: Leaf, scalars: dict[str, Any]) -> None:
    from steprule.engines import fused_rows  # loads the compiler's back end: only when needed

    if fused_rows.takes(leaf, form) and fused_rows.has_kernel(form, leaf.grad.dtype):
        count = leaf.state["step"] if form.rule.counts_steps else None
        fused_rows.update_rows(form, leaf, scalars, float(count or 0))
        advance(leaf, count)
        return
    step = supply_scalars(form, leaf, scalars)
    grad = leaf.grad.coalesce()  # the update is not linear: each row may appear once
    indices = grad._indices().unbind(0)
    stored = {"param": leaf.param, **{name: leaf.state[name] for name in form.array_slots}}
    rows = {name: _gathered(tensor, indices) for name, tensor in stored.items()}
    state = {**leaf.state, **{name: rows[name] for name in form.array_slots}}
    part = Leaf(rows["param"], grad._values(), state, leaf.group, leaf.is_first, leaf.label)
    new = new_values(form, part, part.param, scalars)
    for name, table in stored.items():
        format_of(rows[name]).write(rows[name], new[name])
        _scatter(table, indices, rows[name])
    for name in form.scalar_slots:
        leaf.state[name].fill_(new[name])
    advance(leaf, step)


def _gathered(table: Tensor, indices: tuple[Tensor, ...]) -> Tensor:
    return table.index_select(0, indices[0]) if len(indices) == 1 else table[indices]


def _scatter(table: Tensor, indices: tuple[Tensor, ...], rows: Tensor) -> None:
    if len(indices) == 1:
        table.index_copy_(0, indices[0], rows)
    else:
        table.index_put_(indices, rows)
