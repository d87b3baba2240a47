"""A recording, printed as the source of a kernel for the rows of a sparse gradient.

Three functions over one control block, that of :mod:`~steprule.engines.cpu.kernel_text` with the
words of :class:`RowsControl` behind it: ``prepare``, the fused kernel's own, for one tensor;
``merge``, which finds the entries of the gradient that belong to one row; and ``rows``, which adds
those up and updates the row, over shares of the distinct rows on any number of threads.
"""

from __future__ import annotations

import enum
import functools

from steprule.engines.cpu.kernel_text import element_loop, source_of
from steprule.engines.kernels.element_text import scalar_reads
from steprule.engines.kernels.layout import Layout, columns_with_offsets, in_flushed_mode, indented
from steprule.engines.native.control_block import Control
from steprule.formats.floating import FloatingFormat

# Rows are asked for so many rows before their turn: they lie anywhere in the table.
_AHEAD = 8


class RowsControl(enum.IntEnum):
    """Words behind those of the fused kernel."""

    VALUES = len(Control)  # address of the gradient's entries, one after the other
    WIDTH = enum.auto()  # elements of one row
    ENTRIES = enum.auto()  # how many entries the gradient has
    INDICES = enum.auto()  # the row of each entry
    TABLE_ROWS = enum.auto()  # how many rows the table has
    FIRSTS = enum.auto()  # the first entry of each distinct row
    LASTS = enum.auto()  # the last one
    LINKS = enum.auto()  # for each entry the next one of its row, or -1
    SUMS_OF = enum.auto()  # for each distinct row its place among the sums, or -1 for one entry
    HEADS = enum.auto()  # hash table: the distinct row at each place, or -1
    MASK = enum.auto()  # number of those places, a power of two, less 1
    SUMS = enum.auto()  # where the sums of rows with several entries go
    DISTINCT = enum.auto()  # written by merge: how many distinct rows there are
    SUMMED = enum.auto()  # written by merge: how many of them have several entries
    OUTSIDE = enum.auto()  # written by merge: the first entry whose row is not in the table, or -1


_MERGE = f"""\
def merge(control, _first, _last):
    indices = load_int64(control, {RowsControl.INDICES})
    table_rows = load_int64(control, {RowsControl.TABLE_ROWS})
    firsts = load_int64(control, {RowsControl.FIRSTS})
    lasts = load_int64(control, {RowsControl.LASTS})
    links = load_int64(control, {RowsControl.LINKS})
    sums_of = load_int64(control, {RowsControl.SUMS_OF})
    heads = load_int64(control, {RowsControl.HEADS})
    mask = load_int64(control, {RowsControl.MASK})
    distinct = 0
    summed = 0
    store_int64(control, {RowsControl.OUTSIDE}, -1)
    for place in range(mask + 1):
        store_int64(heads, place, -1)
    for entry in range(load_int64(control, {RowsControl.ENTRIES})):
        row = load_int64(indices, entry)
        if row < 0 or row >= table_rows:
            store_int64(control, {RowsControl.OUTSIDE}, entry)
            return 0
        place = ((row * -7046029254386353131) >> 32) & mask
        found = load_int64(heads, place)
        while found >= 0 and load_int64(indices, load_int64(firsts, found)) != row:
            place = (place + 1) & mask
            found = load_int64(heads, place)
        store_int64(links, entry, -1)
        if found < 0:
            store_int64(heads, place, distinct)
            store_int64(firsts, distinct, entry)
            store_int64(lasts, distinct, entry)
            store_int64(sums_of, distinct, -1)
            distinct += 1
        else:
            store_int64(links, load_int64(lasts, found), entry)
            store_int64(lasts, found, entry)
            if load_int64(sums_of, found) < 0:
                store_int64(sums_of, found, summed)
                summed += 1
    store_int64(control, {RowsControl.DISTINCT}, distinct)
    store_int64(control, {RowsControl.SUMMED}, summed)
    return 0
"""


@functools.cache
def rows_source_of(layout: Layout) -> str:
    """Return the text of ``prepare``, ``merge``, ``rows`` (and ``update``, which is not called)."""
    return "\n\n".join([source_of(layout), _MERGE, _rows_source(layout)]) + "\n"


def _rows_source(layout: Layout) -> str:
    storage = dict(layout.formats)["grad"]
    assert isinstance(storage, FloatingFormat)
    size = storage.columns[0].bytes_for(1)
    own, other, total = (
        storage.kernel_load(name, "i") for name in ("grad_address", "other_address", "sum_address")
    )
    columns = [(variable, size) for variable, _ in columns_with_offsets(layout)]  # of one dtype
    entry_address = f"values + {size} * count * "
    return in_flushed_mode(
        layout,
        "def rows(control, first, last):",
        [
            f"    values = load_int64(control, {RowsControl.VALUES})",
            f"    count = load_int64(control, {RowsControl.WIDTH})",
            f"    indices = load_int64(control, {RowsControl.INDICES})",
            f"    firsts = load_int64(control, {RowsControl.FIRSTS})",
            f"    links = load_int64(control, {RowsControl.LINKS})",
            f"    sums_of = load_int64(control, {RowsControl.SUMS_OF})",
            f"    sums = load_int64(control, {RowsControl.SUMS})",
            f"    columns = load_int64(control, {Control.COLUMNS})",
            f"    scalars = load_int64(control, {Control.SCALARS})",
            "    tensor = 0",
            *indented(scalar_reads(layout), 4),
            *(f"    {v}_table = load_int64(columns, {i})" for i, (v, _) in enumerate(columns)),
            "    for distinct in range(first, last):",
            f"        if distinct + {_AHEAD} < last:",
            f"            ahead = load_int64(indices, load_int64(firsts, distinct + {_AHEAD}))",
            *(
                line
                for v, width in columns
                for line in (
                    f"            for byte in range(0, min(256, {width} * count), 64):",
                    f"                prefetch({v}_table + {width} * count * ahead + byte)",
                )
            ),
            "        entry = load_int64(firsts, distinct)",
            "        row = load_int64(indices, entry)",
            f"        grad_address = {entry_address}entry",
            "        place = load_int64(sums_of, distinct)",
            "        if place >= 0:",
            f"            sum_address = sums + {size} * count * place",
            "            for i in range(count):",
            *indented(storage.kernel_write(["sum_address"], "i", own), 16),
            "            entry = load_int64(links, entry)",
            "            while entry >= 0:",
            f"                other_address = {entry_address}entry",
            "                for i in range(count):",
            f"                    total = {total} + {other}",
            *indented(storage.kernel_write(["sum_address"], "i", "total"), 20),
            "                entry = load_int64(links, entry)",
            "            grad_address = sum_address",
            *(f"        {v} = {v}_table + {width} * count * row" for v, width in columns),
            *indented(element_loop(layout), 8),
        ],
    )
