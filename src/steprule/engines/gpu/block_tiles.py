"""A tile of blocks that share scales: a block a row, and one number a row for its scale.

The new numbers of a tile are all known before they are encoded, so that nothing is kept in memory
meanwhile. Blocks whose elements share bytes are taken in parts, each a tile of its own: names of a
part end with its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from steprule.engines.gpu.tile_language import tile_statements
from steprule.engines.gpu.tiles import parts_of
from steprule.engines.kernels.element_text import (
    array_reads,
    element_printer,
    element_write,
    first_number,
    matrix_reads,
    operation_lines,
    random_origins,
    random_word,
    written_arrays,
)
from steprule.engines.kernels.layout import Layout, column_names
from steprule.formats import BlockFormat
from steprule.formats.stochastic import INFINITY, MAGNITUDE
from steprule.language.passes import update_operations
from steprule.language.recording import Operation, Value

# The smallest normal number: smaller ones count as zero where they are encoded.
_TINY = 2.0**-126


def block_tile(layout: Layout, mask: str | None) -> list[str]:
    """Return what updates a tile of blocks."""
    written = written_arrays(layout)
    in_blocks = {name: new for name, new in written.items() if layout.has_blocks(name)}
    block_mask = "block_mask" if mask else None
    origins = random_origins(layout, written, f"int32({first_number(layout)} + first)")
    lines = [*tile_statements(origins), *opened_blocks(layout, mask)]
    parts = [_Part(layout, mask, p) for p in range(parts_of(layout))]
    for part in parts:
        lines += part.computed(update_operations(layout.form.recording()), in_blocks)
    for name in in_blocks:
        storage = _block_format(layout, name)
        lines += _largest(name, [part.suffix for part in parts])
        lines += tile_statements(storage.kernel_scale(name, is_special=False))
        lines.append(f"{name}_usual = {name}_scale")
        lines += tile_statements(storage.kernel_scale(name, is_special=True))
        lines.append(f"{name}_scale = tl.where({name}_is_special, {name}_scale, {name}_usual)")
        addresses = column_names(name, storage)
        lines += tile_statements(storage.kernel_close(name, addresses), mask=block_mask)
    for part in parts:
        if len(parts) > 1:  # what shares bytes may be read by one thread and written by another
            lines.append("tl.debug_barrier()")
        lines += part.stored(written)
    return lines


def opened_blocks(layout: Layout, mask: str | None) -> list[str]:
    """Return what is known of a tile's blocks before their elements are read."""
    lines = [
        line
        for name, storage in layout.formats
        if isinstance(storage, BlockFormat)
        for line in storage.kernel_open(name, column_names(name, storage))
    ]
    return tile_statements(lines, mask="block_mask" if mask else None)


def decoded_parts(layout: Layout, mask: str | None, body: Sequence[str]) -> list[str]:
    """Return statements for each part of a tile whose blocks have been opened."""
    numbers = range(parts_of(layout))
    return [line for p in numbers for line in _Part(layout, mask, p).statements(body)]


def _block_format(layout: Layout, name: str) -> BlockFormat:
    storage = dict(layout.formats)[name]
    assert isinstance(storage, BlockFormat)
    return storage


def _largest(name: str, suffixes: Sequence[str]) -> list[str]:
    """Return what finds the largest magnitude of each block, and whether one is not finite."""
    lines = []
    for suffix in suffixes:
        lines += [
            f"magnitude = words.bits({name}_new{suffix}) & {MAGNITUDE}",
            f"finite{suffix} = tl.where(magnitude < {INFINITY}, magnitude, 0)",
            f"any{suffix} = magnitude",
        ]
    finite, any_ = (_joined([f"{word}{s}" for s in suffixes]) for word in ("finite", "any"))
    return [
        *lines,
        f"{name}_most = words.largest_along({finite}, 1)",
        f"{name}_is_special = words.largest_along({any_}, 1) >= {INFINITY}",
    ]


def _joined(names: Sequence[str]) -> str:
    text = names[0]
    for name in names[1:]:
        text = f"tl.maximum({text}, {name})"
    return text


class _Part:
    """One part of a tile.

    Args:
        layout: what the kernel is for.
        mask: given if some elements may not be there.
        number: of the part.
    """

    def __init__(self, layout: Layout, mask: str | None, number: int) -> None:
        self._layout = layout
        self.suffix = f"_{number}"
        self._mask = f"mask{self.suffix}" if mask else None
        self._constants = {"part": number}
        self._printer = element_printer(layout)

    def statements(self, lines: Sequence[str], shared: Sequence[str] = ()) -> list[str]:
        return tile_statements(
            lines,
            mask=self._mask,
            suffix=self.suffix,
            constants=self._constants,
            shared=("place", "at", *shared),
        )

    def computed(
        self, operations: Sequence[Operation], in_blocks: Mapping[str, Value | float]
    ) -> list[str]:
        """Return what reads the elements, computes, and names what is to be encoded."""
        layout, printer = self._layout, self._printer
        lines = matrix_reads(layout, printer)
        lines += array_reads(layout, printer, layout.form.recording().array_inputs)
        lines += operation_lines(layout, printer, operations)
        for name, value in in_blocks.items():
            lines.append(f"{name}_new = float32({printer.number(value)})")
            is_normal = f"abs({name}_new) >= float32({_TINY!r})"
            is_nan = f"{name}_new != {name}_new"
            lines.append(
                f"{name}_new = ({name}_new if ({is_normal}) | ({is_nan}) else float32(0.0))"
            )
        self._known = [*_assigned(lines)]
        made = self.statements(lines)
        for name, value in in_blocks.items():
            new = f"{name}_new{self.suffix}"
            if self._mask:  # what is not there must not make the scale larger
                made.append(f"{new} = tl.where({self._mask}, {new}, 0.0)")
            elif not (isinstance(value, Value) and value.is_array):  # one number for all
                made.append(f"{new} = tl.where(at{self.suffix} >= 0, {new}, {new})")
        return made

    def stored(self, written: Mapping[str, Value | float]) -> list[str]:
        """Return what stores the new numbers."""
        layout, lines = self._layout, []
        for name, new in written.items():
            if not layout.has_blocks(name):
                lines += element_write(layout, name, self._printer.number(new))
                continue
            storage = _block_format(layout, name)
            lines += random_word(layout, name)
            lines += storage.kernel_encode(
                name, column_names(name, storage), f"{name}_new", "word", is_special=True
            )
        return self.statements(lines, self._known)


def _assigned(lines: Sequence[str]) -> dict[str, None]:
    """Return the names that statements give a value."""
    return dict.fromkeys(line.partition(" = ")[0] for line in lines if " = " in line)
