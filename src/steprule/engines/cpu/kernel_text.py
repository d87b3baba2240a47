"""A recording, printed as the source of a fused kernel (compiler/ has the language).

The kernel is two functions over one *control block* (int64 words, laid out in
:class:`~steprule.engines.native.control_block.Control`):

- ``prepare`` runs once a step, over tensors: it advances the step counts, evaluates the scalar
  operations in float64 (once for each run of tensors with equal inputs) and writes the scalar
  slots;
- ``update`` runs over chunks of elements, on any number of threads: it reads every array once,
  evaluates the array operations and writes every array once.

A tensor whose gradient's address is 0 has no gradient at this step and is passed over.
"""

from __future__ import annotations

import functools

from steprule.engines.cpu.block_text import update_in_blocks
from steprule.engines.kernels.element_text import (
    first_number,
    random_keys,
    random_origins,
    scalar_reads,
    update_statements,
    written_arrays,
)
from steprule.engines.kernels.layout import (
    Layout,
    columns_with_offsets,
    grad_offset,
    in_flushed_mode,
    indented,
)
from steprule.engines.kernels.prepare_text import prepare_source
from steprule.engines.native.control_block import Control

# Chunks whose memory is asked for while this many before them are updated: small tensors lie
# anywhere, and the processor would wait for each.
AHEAD = 4


@functools.cache
def source_of(layout: Layout) -> str:
    """Return the text of ``prepare`` and ``update``."""
    return "\n\n".join([prepare_source(layout), _update_source(layout)]) + "\n"


def _update_source(layout: Layout) -> str:
    return in_flushed_mode(
        layout,
        "def update(control, first_chunk, last_chunk):",
        [
            *indented(table_reads(layout), 4),
            "    for chunk in range(first_chunk, last_chunk):",
            f"        if chunk + {AHEAD} < last_chunk:",
            f"            tensor = load_int64(chunks, 3 * (chunk + {AHEAD}))",
            f"            start = load_int64(chunks, 3 * (chunk + {AHEAD}) + 1)",
            "            grad_address = load_int64(grads, tensor)",
            f"            prefetch(grad_address + {grad_offset(layout)})",
            *(
                f"            prefetch(load_int64(columns, {i} * tensors + tensor) + {offset})"
                for i, (_, offset) in enumerate(columns_with_offsets(layout))
            ),
            *indented(chunk_reads(layout), 8),
            *indented(element_loop(layout), 8),
        ],
    )


def table_reads(layout: Layout) -> list[str]:
    """Return the reads of the tables that a loop over chunks looks at."""
    tables = [Control.TENSORS, Control.GRADS, Control.COLUMNS, Control.SCALARS, Control.CHUNKS]
    if layout.count is not None:
        tables += [Control.COUNTS, Control.KEYS, *([Control.ORIGINS] * layout.is_cut)]
    return [f"{table.name.lower()} = load_int64(control, {table})" for table in tables]


def chunk_reads(layout: Layout) -> list[str]:
    """Return what starts a chunk: its columns' addresses and scalars; none without a gradient."""
    return [
        "tensor = load_int64(chunks, 3 * chunk)",
        "start = load_int64(chunks, 3 * chunk + 1)",
        "count = load_int64(chunks, 3 * chunk + 2)",
        "grad_address = load_int64(grads, tensor)",
        "if grad_address == 0:",
        "    continue",
        f"grad_address += {grad_offset(layout)}",
        *(
            f"{variable} = load_int64(columns, {i} * tensors + tensor) + {offset}"
            for i, (variable, offset) in enumerate(columns_with_offsets(layout))
        ),
        *scalar_reads(layout),
    ]


def element_loop(layout: Layout) -> list[str]:
    """Return the loop over ``count`` elements from the addresses in the columns' variables."""
    if layout.block > 1:
        return update_in_blocks(layout)
    written = written_arrays(layout)
    return [
        *random_keys(layout, written),
        *random_origins(layout, written, f"int32({first_number(layout)})"),
        "for i in range(count):",
        *indented(update_statements(layout), 4),
    ]
