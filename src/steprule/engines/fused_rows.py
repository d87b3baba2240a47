"""The fused kernel on a sparse gradient's rows: no other row of param or state is touched.

Everything is found anew at each step, since the rows are; a step's cost goes with the rows of the
gradient and not with the table's.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engines import Leaf
from steprule.engines.fused import PLAIN
from steprule.engines.kernel_cache import CompilationError, Library, library_for
from steprule.engines.kernel_source import Control, Layout, scalar_row
from steprule.engines.remembered import remembered
from steprule.engines.rows_source import RowsControl, rows_source_of
from steprule.engines.shares import Shares
from steprule.formats import format_of
from steprule.rule import SUPPLIED
from steprule.shared_terms import Form

# Elements for each thread; rows lie anywhere in memory, so that each costs more than in fused.py.
GRAIN = 1 << 14

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def takes(leaf: Leaf, form: Form) -> bool:
    """Whether the kernel can reach the rows: plain contiguous tables of one dtype on the CPU."""
    grad = leaf.grad
    dtype = grad.dtype
    return (
        not form.scalar_slots
        and not form.capturable
        and grad.sparse_dim() == 1
        and dtype in _DTYPES
        and all(
            type(table) in PLAIN
            and table.dtype is dtype
            and table.device.type == "cpu"
            and table.is_contiguous()
            and not table.is_inference()
            for table in _tables(form, leaf)
        )
    )


def _tables(form: Form, leaf: Leaf) -> list[Tensor]:
    return [leaf.param, *(leaf.state[name] for name in form.array_slots)]


def update_rows(form: Form, leaf: Leaf, numbers: Mapping[str, Any], step: float) -> None:
    """Update the rows that the gradient has; ``step`` counts the updates before this one.

    Raises:
        IndexError: an entry of the gradient is for a row that the table has not. Nothing changed.
    """
    indices, values = leaf.grad._indices().contiguous(), leaf.grad._values().contiguous()
    count = values.shape[0]
    if values.numel() == 0:
        return
    width = values.numel() // count
    library = _library(form, values.dtype)
    prepare, _, merge, rows = library.functions
    tables = [table.data_ptr() for table in _tables(form, leaf)]
    hyperparameters = [numbers[name] for name in form.scalars if name not in SUPPLIED]

    # All that the kernel reads and writes, in one block of 8-byte words.
    places = 1 << (2 * count - 1).bit_length()
    parts = {
        Control.GRADS: 1,
        Control.COLUMNS: len(tables),
        Control.COUNTS: 1,
        Control.GROUPS: 1,
        Control.NUMBERS: max(1, len(hyperparameters)),
        Control.FIRST: 1,
        Control.SCALARS: max(1, _scalars_of(form)),
        RowsControl.FIRSTS: count,
        RowsControl.LASTS: count,
        RowsControl.LINKS: count,
        RowsControl.SUMS_OF: count,
        RowsControl.HEADS: places,
    }
    head = len(Control) + len(RowsControl)
    words = np.empty(head + 1 + sum(parts.values()), dtype=np.int64)
    floats = words.view(np.float64)
    control = words.ctypes.data
    where, begin = head + 1, {}
    for word, length in parts.items():
        begin[word] = where
        words[word] = control + 8 * where
        where += length
    words[begin[Control.GRADS]] = words[RowsControl.VALUES] = values.data_ptr()
    words[begin[Control.COLUMNS] : begin[Control.COLUMNS] + len(tables)] = tables
    words[begin[Control.COUNTS]] = control + 8 * head
    floats[head] = step
    words[begin[Control.GROUPS]] = 0
    floats[begin[Control.NUMBERS] : begin[Control.NUMBERS] + len(hyperparameters)] = hyperparameters
    floats[begin[Control.FIRST]] = leaf.is_first
    words[Control.TENSORS] = 1
    words[RowsControl.WIDTH] = width
    words[RowsControl.ENTRIES] = count
    words[RowsControl.INDICES] = indices.data_ptr()
    words[RowsControl.TABLE_ROWS] = leaf.param.shape[0]
    words[RowsControl.MASK] = places - 1

    merge(control, 0, 0)
    outside = int(words[RowsControl.OUTSIDE])
    if outside >= 0:
        raise IndexError(
            f"the sparse gradient of {leaf.label} has an entry for row {int(indices[0, outside])}, "
            f"the parameter has {leaf.param.shape[0]} rows"
        )
    distinct = int(words[RowsControl.DISTINCT])
    sums = values.new_empty(int(words[RowsControl.SUMMED]) * width)
    words[RowsControl.SUMS] = sums.data_ptr()
    prepare(control, 0, 0)
    threads = min(torch.get_num_threads(), 1 + count * width // GRAIN)
    if threads == 1:
        rows(control, 0, distinct)
    else:
        edges = np.linspace(0, distinct, threads + 1).astype(np.int64)
        Shares(library, 3, control, edges).run()
    torch.autograd.graph.increment_version([leaf.param])


@remembered
def has_kernel(form: Form, dtype: torch.dtype) -> bool:
    """Whether the kernel is there, or could be compiled."""
    try:
        return bool(_library(form, dtype).functions)
    except CompilationError:
        return False


@remembered
def _library(form: Form, dtype: torch.dtype) -> Library:
    stored = ("param", "grad", *form.array_slots)
    layout = Layout(
        form=form,
        formats=tuple((name, format_of(torch.empty(0, dtype=dtype))) for name in stored),
        count_dtypes=(("step", "float64"),) if form.rule.counts_steps else (),
        compute=_DTYPES[dtype],
    )
    return library_for(
        rows_source_of(layout),
        ("prepare", "update", "merge", "rows"),
        arity=3,
        title=f"the rule {form.rule.name!r} for sparse rows",
    )


@functools.cache
def _scalars_of(form: Form) -> int:
    return len(scalar_row(form.recording()))
