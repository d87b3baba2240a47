"""Tiles: the elements that a program has at hand at a time, and the loops over a chunk's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steprule.engines.kernels.layout import Layout, indented

# Elements of a tile: 8 for each of 128 threads, 16 bytes of elements that have 16 bits.
TILE = 1024

# The statements for a tile, given what tells which elements are there (None: all).
Tile = Callable[[str | None], Sequence[str]]


@dataclass(frozen=True)
class Variant:
    """What a kernel is printed for.

    Attributes:
        layout: the form, and how each of its arrays is stored.
        device_numbers: numbers of a group that only the device has, so that they are not in a
            tensor's row of scalars.
        asks_found_inf: whether a step may be called off by a number on the device.
    """

    layout: Layout
    device_numbers: tuple[str, ...] = ()
    asks_found_inf: bool = False


def over_tiles(layout: Layout, tile: Tile, *, in_blocks: bool = True) -> list[str]:
    """Return the loops over a chunk: tiles that are whole and aligned, then the others.

    Args:
        layout: what the kernel is for.
        tile: prints a tile.
        in_blocks: whether blocks, where there are any, are to be told apart.
    """
    index = _block_index if in_blocks and layout.block > 1 else _element_index
    return [
        f"for base in range(0, masked, {TILE}):",
        *indented([*index(layout, None), *tile(None)], 4),
        f"for base in range(masked, count, {TILE}):",
        *indented([*index(layout, "mask"), *tile("mask")], 4),
    ]


def _element_index(_: Layout, mask: str | None) -> list[str]:
    lines = [f"i = base + tl.arange(0, {TILE})"]
    return [*lines, "mask = i < count"] if mask else lines


def _block_index(layout: Layout, mask: str | None) -> list[str]:
    """Return the first elements of a tile's blocks, one a row, and an element's place in its own.

    Blocks whose elements share bytes are taken in parts, one after the other.
    """
    block, parts = layout.block, parts_of(layout)
    each, digits = block // parts, parts.bit_length() - 1
    lines = [
        f"first = base + {block} * tl.arange(0, {TILE // block})[:, None]",
        f"i = tl.arange(0, {each})[None, :]",
    ]
    is_there = ""
    if mask:
        lines.append("block_mask = first < count")
    for p in range(parts):
        if mask and parts > 1:
            # The last block may have fewer elements: each part has as many.
            lines.append(f"each = tl.minimum(count - first, {block}) + {parts - 1} >> {digits}")
            lines.append(f"place_{p} = {p} * each + i")
            is_there = " & (i < each)"
        else:
            lines.append(f"place_{p} = {p * each} + i")
        lines.append(f"at_{p} = first + place_{p}")
        if mask:
            lines.append(f"mask_{p} = (at_{p} < count){is_there}")
    return lines


def parts_of(layout: Layout) -> int:
    """Return in how many parts a block is taken: as many as elements share a byte."""
    return max(
        (
            column.elements
            for name, storage in layout.formats
            if layout.has_blocks(name)
            for column in storage.columns
            if not column.part
        ),
        default=1,
    )
