"""The fused kernel on a sparse gradient's rows: each row is to the kernel a tensor of its own.

The tables of addresses are made anew at each step, since the rows are; a step's cost goes with the
rows of the gradient and not with the table's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engines import Leaf
from steprule.engines.kernel_cache import library_for
from steprule.engines.kernel_source import Control, Layout, scalar_row, source_of
from steprule.formats import format_of
from steprule.rule import SUPPLIED
from steprule.shared_terms import Form

_PLAIN = {Tensor, torch.nn.Parameter}
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}

Table = np.ndarray[Any, Any]


def takes(leaf: Leaf, form: Form) -> bool:
    """Whether the kernel can reach the rows: plain contiguous tables of one dtype on the CPU."""
    grad = leaf.grad
    tables = [leaf.param, *(leaf.state[name] for name in form.array_slots)]
    return (
        not form.scalar_slots
        and not form.capturable
        and grad.sparse_dim() == 1
        and grad.dtype in _DTYPES
        and all(
            type(table) in _PLAIN
            and table.device.type == "cpu"
            and table.dtype is grad.dtype
            and table.is_contiguous()
            and not table.is_inference()
            for table in tables
        )
    )


def update_rows(form: Form, leaf: Leaf, numbers: Mapping[str, Any], step: float) -> None:
    """Update the rows that the gradient has; ``step`` counts the updates before this one."""
    rows, values = merged_rows(leaf.grad)
    count, width = len(rows), values[0].numel() if len(rows) else 0
    if not count or not width:
        return
    recording = form.recording()
    tables = [leaf.param, *(leaf.state[name] for name in form.array_slots)]
    stored = [("param", leaf.param), ("grad", values)]
    stored += [(name, leaf.state[name]) for name in form.array_slots]
    layout = Layout(
        form=form,
        formats=tuple((name, format_of(tensor)) for name, tensor in stored),
        count_dtypes=(("step", "float64"),) if form.rule.counts_steps else (),
        compute=_DTYPES[leaf.param.dtype],
    )
    prepare, update = library_for(source_of(layout), ("prepare", "update"), arity=3).functions

    bytes_of_row = width * values.element_size()
    line = np.arange(count, dtype=np.int64)
    steps = np.full(count, float(step))
    hyperparameters = [float(numbers[n]) for n in form.scalars if n not in SUPPLIED]
    contents: dict[Control, Table] = {
        Control.GRADS: values.data_ptr() + bytes_of_row * line,
        Control.COLUMNS: np.stack([t.data_ptr() + bytes_of_row * rows for t in tables]),
        Control.COUNTS: steps.ctypes.data + 8 * line,
        Control.GROUPS: np.zeros(count, dtype=np.int64),
        Control.NUMBERS: np.array(hyperparameters or [0.0]),
        Control.FIRST: np.full(count, float(leaf.is_first)),
        Control.SCALARS: np.zeros((count, max(1, len(scalar_row(recording))))),
        Control.CHUNKS: np.stack([line, np.zeros_like(line), np.full_like(line, width)], axis=1),
    }
    control = np.zeros(len(Control), dtype=np.int64)
    control[Control.TENSORS] = count
    for word, table in contents.items():
        control[word] = table.ctypes.data
    prepare(control.ctypes.data, 0, 0)
    update(control.ctypes.data, 0, count)
    torch.autograd.graph.increment_version([leaf.param])


def merged_rows(grad: Tensor) -> tuple[Table, Tensor]:
    """The gradient's row numbers, each once, and its rows; entries for the same row are added."""
    rows: Table = grad._indices()[0].numpy()
    values = grad._values().contiguous()
    if grad.is_coalesced() or len(rows) < 2:
        return rows, values
    order = np.argsort(rows, kind="stable")
    ordered = rows[order]
    is_new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    if is_new.all():  # nothing to add up: the order of rows does not matter
        return rows, values
    place = np.empty_like(order)
    place[order] = np.cumsum(is_new) - 1
    merged = values.new_zeros((int(is_new.sum()), *values.shape[1:]))
    return ordered[is_new], merged.index_add_(0, torch.from_numpy(place), values)
