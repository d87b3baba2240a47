"""The fused kernel on a sparse gradient's rows: no other row of param or state is touched.

Everything is found anew at each step, since the rows are; a step's cost goes with the rows of the
gradient and not with the table's.
"""

from __future__ import annotations

import functools
from array import array
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.engines.engine import Leaf
from steprule.engines.kernel_cache.cache import CompilationError, Library, library_for
from steprule.engines.kernel_cache.cached_lookup import cached_lookup
from steprule.engines.kernels.layout import Layout, scalar_row
from steprule.engines.kernels.memory import PLAIN
from steprule.engines.kernels.printed_names import with_printed_names
from steprule.engines.native.control_block import Control
from steprule.engines.rows.kernel_text import RowsControl, rows_source_of
from steprule.engines.threads.work_split import WorkSplit
from steprule.formats.floating import FLOATING
from steprule.language.form import Form
from steprule.language.rule import SUPPLIED

# Elements for each thread; rows lie anywhere in memory, so that each costs more than in fused.py.
GRAIN = 1 << 14

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def takes(leaf: Leaf, form: Form) -> bool:
    """Tell whether the kernel reaches the rows: plain contiguous CPU tables of one dtype."""
    grad = leaf.grad
    dtype = grad.dtype
    return (
        not form.scalar_slots
        and not form.recording().has_reductions
        and not form.needs_shape
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

    # The numbers that the kernel reads, and all else that it reads or writes in 8-byte words.
    numbers_block = array("d", [step, float(leaf.is_first), *hyperparameters])
    first_number = numbers_block.buffer_info()[0]
    places = 1 << (2 * count - 1).bit_length()
    parts = {
        Control.GRADS: 1,
        Control.COLUMNS: len(tables),
        Control.COUNTS: 1,
        Control.GROUPS: 1,
        Control.SCALARS: max(1, _scalars_of(form)),
        RowsControl.FIRSTS: count,
        RowsControl.LASTS: count,
        RowsControl.LINKS: count,
        RowsControl.SUMS_OF: count,
        RowsControl.HEADS: places,
    }
    where, begin = len(Control) + len(RowsControl), {}
    for word, length in parts.items():
        begin[word] = where
        where += length
    words = array("q", bytes(8 * where))
    control = words.buffer_info()[0]
    for word, start in begin.items():
        words[word] = control + 8 * start
    words[begin[Control.GRADS]] = words[RowsControl.VALUES] = values.data_ptr()
    for i, table in enumerate(tables):
        words[begin[Control.COLUMNS] + i] = table
    words[begin[Control.COUNTS]] = first_number
    words[Control.FIRSTS] = first_number + 8
    words[Control.NUMBERS] = first_number + 16
    words[Control.TENSORS] = 1
    words[RowsControl.WIDTH] = width
    words[RowsControl.ENTRIES] = count
    words[RowsControl.INDICES] = indices.data_ptr()
    words[RowsControl.TABLE_ROWS] = leaf.param.shape[0]
    words[RowsControl.MASK] = places - 1

    merge(control, 0, 0)
    outside = words[RowsControl.OUTSIDE]
    if outside >= 0:
        raise IndexError(
            f"the sparse gradient of {leaf.label} has an entry for row {int(indices[0, outside])}, "
            f"the parameter has {leaf.param.shape[0]} rows"
        )
    distinct = words[RowsControl.DISTINCT]
    sums = values.new_empty(words[RowsControl.SUMMED] * width)
    words[RowsControl.SUMS] = sums.data_ptr()
    prepare(control, 0, 0)
    threads = min(torch.get_num_threads(), 1 + count * width // GRAIN)
    if threads == 1:
        rows(control, 0, distinct)
    else:
        WorkSplit(library, 3, control, [distinct * k // threads for k in range(threads + 1)]).run()
    torch.autograd.graph.increment_version([leaf.param])


@cached_lookup
def has_kernel(form: Form, dtype: torch.dtype) -> bool:
    """Tell whether the kernel is there, or could be compiled."""
    try:
        return bool(_library(form, dtype).functions)
    except CompilationError:
        return False


@cached_lookup
def _library(form: Form, dtype: torch.dtype) -> Library:
    stored = ("param", "grad", *form.array_slots)
    layout = Layout(
        form=form,
        formats=tuple((name, FLOATING[dtype]) for name in stored),
        count_dtypes=(("step", "float64"),) if form.rule.counts_steps else (),
        compute=_DTYPES[dtype],
    )
    return library_for(
        rows_source_of(with_printed_names(layout)),
        ("prepare", "update", "merge", "rows"),
        arity=3,
        title=f"the rule {form.rule.name!r} for sparse rows",
    )


@functools.cache
def _scalars_of(form: Form) -> int:
    return len(scalar_row(form.recording()))
