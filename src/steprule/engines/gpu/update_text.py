"""The update of all elements, printed: one program a chunk, a tile of elements at a time.

A tile that is whole and aligned is loaded and stored without a mask, 16 bytes a thread; others
element by element. Both branches are the same text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from steprule.engines.gpu.arguments import head
from steprule.engines.gpu.block_tiles import block_tile
from steprule.engines.gpu.tile_language import tile_statements
from steprule.engines.gpu.tiles import TILE, Variant, over_tiles
from steprule.engines.kernels.element_text import (
    first_number,
    random_keys,
    random_origins,
    scalar_reads,
    update_statements,
    written_arrays,
)
from steprule.engines.kernels.layout import (
    columns_with_offsets,
    grad_offset,
    indented,
)
from steprule.language.rule import SUPPLIED


@functools.cache
def update_source(variant: Variant) -> str:
    """Return the text of ``update``."""
    layout = variant.layout
    written = written_arrays(layout)
    before = random_keys(layout, written)
    if layout.block == 1:
        before += random_origins(layout, written, f"int32({first_number(layout)})")

    def tile(mask: str | None) -> list[str]:
        if layout.block > 1:
            return block_tile(layout, mask)
        return tile_statements(update_statements(layout), mask=mask)

    return "\n".join(
        [
            head("update"),
            *indented(
                over_chunks(
                    variant,
                    [
                        *tile_statements(before),
                        *over_tiles(layout, tile),
                    ],
                ),
                4,
            ),
        ]
    )


def over_chunks(variant: Variant, body: Sequence[str], *, only_grads: bool = False) -> list[str]:
    """Return what does something for a chunk whose tensor has a gradient: the program's.

    Args:
        variant: what the kernel is for.
        body: statements of Triton's; the columns' addresses and scalars are known there.
        only_grads: whether it needs nothing of the tensor but its gradient.
    """
    layout = variant.layout
    columns = [] if only_grads else columns_with_offsets(layout)
    reads = [f"grad_address += {grad_offset(layout)}"]
    reads += [
        f"{name} = load_int64(columns, {i} * tensors + tensor) + {offset}"
        for i, (name, offset) in enumerate(columns)
    ]
    if not only_grads:
        reads += scalar_reads(layout, _places_of_device_numbers(variant))
    addresses = " | ".join(["grad_address", *(name for name, _ in columns)])
    return [
        "chunk = first_chunk + tl.program_id(0)",
        "tensor = tl.load(chunks + 3 * chunk)",
        "start = tl.load(chunks + 3 * chunk + 1)",
        "count = tl.load(chunks + 3 * chunk + 2).to(tl.int32)",
        "grad_address = tl.load(grads + tensor)",
        f"if {admitted(variant, 'grad_address != 0')}:",
        *indented(tile_statements(reads), 4),
        f"    is_aligned = ({addresses}) & 15 == 0",
        # Where the tiles begin that need masks.
        f"    masked = tl.where(is_aligned, count // {TILE} * {TILE}, 0)",
        *indented(body, 4),
    ]


def admitted(variant: Variant, condition: str) -> str:
    """Return a condition that also calls off a step whose gradients are not finite."""
    return f"({condition}) & (tl.load(found_inf) == 0)" if variant.asks_found_inf else condition


def _places_of_device_numbers(variant: Variant) -> dict[str, str]:
    """Return where numbers are read that only the device has, by their names."""
    form = variant.layout.form
    names = [name for name in form.scalars if name not in SUPPLIED]
    group = f"load_int64(groups, tensor) * {len(names)}"
    return {name: f"numbers, {group} + {names.index(name)}" for name in variant.device_numbers}
