"""Loops over elements that share scales: a block at a time.

A block's scale is known when all of its new numbers are, so that these are computed in a first
loop, which decodes the old ones, and encoded in a second. What else the rule computes stands in the
second loop too: roots and divisions then go side by side with the integer operations of encoding,
where they would otherwise be waited for. Numbers that are not finite take other, slower loops.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from steprule.engines.kernels.element_text import (
    array_reads,
    element_printer,
    element_write,
    first_number,
    matrix_reads,
    operation_lines,
    random_keys,
    random_origins,
    random_word,
    written_arrays,
)
from steprule.engines.kernels.layout import Layout, column_names, indented
from steprule.formats import BlockFormat
from steprule.formats.random_bits import literal
from steprule.formats.stochastic import INFINITY, MAGNITUDE
from steprule.language.passes import operations_for
from steprule.language.recording import Value

# The text for an element, given whether elements that are not finite must be thought of.
Body = Callable[[bool], Sequence[str]]


def over_blocks(layout: Layout, body: Body) -> list[str]:
    """Return a loop over a chunk's elements that only reads what has blocks."""

    def block(count: str) -> list[str]:
        return [*_opened(layout), *_decoding_loop(layout, body, count)]

    return _each_block(layout, block)


def update_in_blocks(layout: Layout) -> list[str]:
    """Return the loop that updates a chunk's elements."""
    written = written_arrays(layout)
    in_blocks = {name: new for name, new in written.items() if layout.has_blocks(name)}
    update = _Update(layout, written, in_blocks)

    def block(count: str) -> list[str]:
        index = f"int32({first_number(layout)} + first)"
        lines = [*random_origins(layout, written, index), *_opened(layout)]
        lines += [f"{name}_most = int32(0)" for name in in_blocks]
        lines += _decoding_loop(layout, update.first_body, count)
        conditions = []
        for name in in_blocks:
            storage, addresses = update.stored(name)
            lines += _scale(storage, name, update.in_room(name, "i"), count)
            lines += storage.kernel_close(name, addresses)
            conditions.append(f"{name}_is_special")
        return lines + _both(layout, update.second_body, count, " | ".join(conditions))

    return [*update.rooms(), *random_keys(layout, written), *_each_block(layout, block)]


class _Update:
    """The bodies of the two loops of an update.

    Args:
        layout: what the kernel is for.
        written: the arrays that change, with their new values.
        in_blocks: those among them that have blocks.
    """

    def __init__(
        self,
        layout: Layout,
        written: Mapping[str, Value | float],
        in_blocks: Mapping[str, Value | float],
    ) -> None:
        self._layout, self._written, self._in_blocks = layout, written, in_blocks
        recording = self._recording = layout.form.recording()
        self._first = operations_for(recording, in_blocks.values())
        known = {x for x in in_blocks.values() if isinstance(x, Value) and x.is_array}
        others = [new for name, new in written.items() if name not in in_blocks]
        self._second = operations_for(recording, others, known)
        used = {x for operation in self._second for x in operation.operands} | {*others}
        self._kept = [
            name
            for name, value in recording.array_inputs.items()
            if layout.has_blocks(name) and value in used
        ]

    def rooms(self) -> list[str]:
        """Return what reserves memory for a block's new numbers, and old ones used once more."""
        size = self._layout.block * (8 if self._layout.compute == "float64" else 4)
        names = [f"{name}_room" for name in self._in_blocks]
        names += [f"{name}_old" for name in self._kept]
        return [f"{name} = scratch({size})" for name in names]

    def stored(self, name: str) -> tuple[BlockFormat, list[str]]:
        """Return the format of an array with blocks, and the variables of its addresses."""
        storage = dict(self._layout.formats)[name]
        assert isinstance(storage, BlockFormat)
        return storage, column_names(name, storage)

    def in_room(self, name: str, index: str) -> str:
        """Return an expression for a new number, as float32."""
        return f"float32(load_{self._layout.compute}({name}_room, {index}))"

    def first_body(self, is_special: bool) -> list[str]:
        """Return what computes an element's new numbers that have blocks."""
        layout, printer = self._layout, element_printer(self._layout)
        number = layout.compute
        lines = matrix_reads(layout, printer)
        lines += array_reads(layout, printer, self._recording.array_inputs, is_special=is_special)
        lines += [f"store_{number}({name}_old, place, {name}_value)" for name in self._kept]
        lines += operation_lines(layout, printer, self._first)
        for name, new in self._in_blocks.items():
            magnitude = f"bits_of(float32({printer.number(new)})) & {literal(MAGNITUDE)}"
            lines.append(f"store_{number}({name}_room, place, {printer.number(new)})")
            lines.append(f"{name}_most = largest({name}_most, {magnitude})")
        return lines

    def second_body(self, is_special: bool) -> list[str]:
        """Return what computes an element's other numbers, and stores them all."""
        layout, printer = self._layout, element_printer(self._layout)
        number = layout.compute
        lines = matrix_reads(layout, printer)
        inputs = self._recording.array_inputs
        lines += array_reads(layout, printer, [n for n in inputs if not layout.has_blocks(n)])
        for name in self._kept:
            printer.names[inputs[name]] = f"{name}_value"
            lines.append(f"{name}_value = load_{number}({name}_old, place)")
        for name, new in self._in_blocks.items():
            lines.append(f"{name}_new = load_{number}({name}_room, place)")
            if isinstance(new, Value) and new.is_array:
                printer.names[new] = f"{name}_new"
        lines += operation_lines(layout, printer, self._second)
        for name, new in self._written.items():
            if name not in self._in_blocks:
                lines += element_write(layout, name, printer.number(new))
                continue
            storage, addresses = self.stored(name)
            lines += random_word(layout, name)
            lines += storage.kernel_encode(
                name, addresses, f"float32({name}_new)", "word", is_special=is_special
            )
        return lines


def _each_block(layout: Layout, block: Callable[[str], Sequence[str]]) -> list[str]:
    """Return a loop over whole blocks, and what follows for the rest of the chunk.

    Loops over a whole block have a constant count, of which the compiler makes much.
    """
    digits = layout.block.bit_length() - 1
    return [
        f"for block in range(count >> {digits}):",
        f"    first = block << {digits}",
        *indented(block(str(layout.block)), 4),
        f"first = count >> {digits} << {digits}",
        "tail = count - first",
        "if tail > 0:",
        *indented(block("tail"), 4),
    ]


def _opened(layout: Layout) -> list[str]:
    """Return what is known of a block's arrays before their elements are read."""
    return [
        line
        for name, storage in layout.formats
        if isinstance(storage, BlockFormat)
        for line in storage.kernel_open(name, column_names(name, storage))
    ]


def _scale(storage: BlockFormat, name: str, number: str, count: str) -> list[str]:
    """Return what makes a block's scale; ``number`` is its new element ``i``."""
    return [
        f"{name}_is_special = {name}_most >= {literal(INFINITY)}",
        f"if {name}_is_special:",
        f"    {name}_most = int32(0)",
        f"    for i in independent({count}):",
        f"        magnitude = bits_of({number}) & {literal(MAGNITUDE)}",
        f"        finite = (magnitude if magnitude < {literal(INFINITY)} else int32(0))",
        f"        {name}_most = largest({name}_most, finite)",
        *indented(storage.kernel_scale(name, is_special=True), 4),
        "else:",
        *indented(storage.kernel_scale(name, is_special=False), 4),
    ]


def _decoding_loop(layout: Layout, body: Body, count: str) -> list[str]:
    conditions = [
        storage.kernel_is_special(name)
        for name, storage in layout.formats
        if isinstance(storage, BlockFormat)
    ]
    return _both(layout, body, count, " | ".join(f"({x})" for x in conditions))


def _both(layout: Layout, body: Body, count: str, is_special: str) -> list[str]:
    """Return a loop for blocks with elements that are not finite, and one for all others."""
    special = _elements(layout, body(True), count)
    if not count.isdigit():  # what is left of a chunk need not be fast
        return special
    return [
        f"if {is_special}:",
        *indented(special, 4),
        "else:",
        *indented(_elements(layout, body(False), count), 4),
    ]


def _elements(layout: Layout, body: Sequence[str], count: str) -> list[str]:
    """Return a loop over the elements of a block; in as many parts as elements share a byte."""
    parts = _parts(layout)
    if parts == 1:
        return [
            f"for i in independent({count}):",
            "    place = i",
            "    at = first + i",
            *indented(body, 4),
        ]
    if count.isdigit():
        inside = each = str(int(count) // parts)
    else:
        each = f"({count} + {parts - 1}) >> {parts.bit_length() - 1}"
        inside = f"min(each, {count} - base)"
    return [
        f"each = {each}",
        f"for part in range({parts}):",
        "    base = part * each",
        f"    for i in independent({inside}):",
        "        place = base + i",
        "        at = first + place",
        *indented(body, 8),
    ]


def _parts(layout: Layout) -> int:
    columns = [
        column
        for _, storage in layout.formats
        if isinstance(storage, BlockFormat)
        for column in storage.columns
        if not column.part
    ]
    return max(column.elements for column in columns)
