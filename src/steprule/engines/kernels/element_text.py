"""The text for one element: its numbers read, computed with, and written."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from steprule.engines.kernels.layout import (
    Layout,
    array_names,
    column_names,
    matrix_names,
    scalar_row,
)
from steprule.engines.kernels.prepare_text import row_length
from steprule.engines.kernels.spelling import KERNEL_SPELLING
from steprule.engines.printing import ExpressionPrinter, scalar_divisors, truths_of
from steprule.formats import BlockFormat
from steprule.formats.random_bits import kernel_key, kernel_origin, kernel_word
from steprule.language.passes import update_operations
from steprule.language.recording import Operation, Value


def element_printer(layout: Layout) -> ExpressionPrinter:
    """Return a printer of operations on elements, with the names of what a tensor has in common."""
    recording = layout.form.recording()
    names = array_names(recording)
    return ExpressionPrinter(KERNEL_SPELLING, names, layout.compute, truths_of(recording))


def update_statements(layout: Layout) -> list[str]:
    """Return what updates an element that stands alone."""
    printer = element_printer(layout)
    lines = matrix_reads(layout, printer)
    lines += element_body(layout, printer, update_operations(layout.form.recording()))
    for name, output in written_arrays(layout).items():
        lines += element_write(layout, name, printer.number(output))
    return lines


def element_body(
    layout: Layout,
    printer: ExpressionPrinter,
    operations: Iterable[Operation],
    *,
    is_special: bool = True,
) -> list[str]:
    """Return what reads an element of each array and carries out operations on them.

    Args:
        layout: what the kernel is for.
        printer: with the names of what is known; it learns those of the arrays and results.
        operations: in order.
        is_special: whether a block may have elements that are not finite.
    """
    arrays = layout.form.recording().array_inputs
    return [
        *array_reads(layout, printer, arrays, is_special=is_special),
        *operation_lines(layout, printer, operations),
    ]


def array_reads(
    layout: Layout,
    printer: ExpressionPrinter,
    arrays: Iterable[str],
    *,
    is_special: bool = True,
) -> list[str]:
    """Return what reads an element of some arrays."""
    recording = layout.form.recording()
    body = []
    for name in arrays:
        storage, stored = dict(layout.formats)[name], f"{name}_stored"
        printer.names[recording.array_inputs[name]] = f"{name}_value"
        addresses = column_names(name, storage)
        if isinstance(storage, BlockFormat):
            body += storage.kernel_decode(name, addresses, stored, is_special=is_special)
        else:
            body += layout.element_format(name).kernel_read(addresses, layout.index, stored)
        body.append(f"{name}_value = {layout.compute}({stored})")
    return body


def matrix_reads(layout: Layout, printer: ExpressionPrinter) -> list[str]:
    """Return what reads an element of each matrix operation's result."""
    body = []
    for value, name in matrix_names(layout.form.recording()).items():
        storage = layout.element_format(name)
        addresses = column_names(name, storage)
        printer.names[value] = f"{name}_value"
        body += storage.kernel_read(addresses, layout.index, f"{name}_stored")
        body.append(f"{name}_value = {layout.compute}({name}_stored)")
    return body


def operation_lines(
    layout: Layout, printer: ExpressionPrinter, operations: Iterable[Operation]
) -> list[str]:
    """Return what carries out operations."""
    divisors = scalar_divisors(layout.form.recording())
    body = []
    for operation in operations:
        name = printer.names[operation.result] = f"x{operation.result.index}"
        divisor = operation.operands[-1]
        if operation.name == "div" and divisor in divisors:
            # One division a tensor instead of one an element; half an ulp apart at most.
            dividend = operation.operands[0]
            assert isinstance(divisor, Value)
            text = f"({printer.number(dividend)} * r{divisor.index})"
        else:
            text = printer.expression(operation)
        body.append(f"{name} = {text}")
    return body


def written_arrays(layout: Layout) -> dict[str, Value | float]:
    """Return the arrays that an update changes, with their new values."""
    recording = layout.form.recording()
    known = dict(layout.formats)
    return {
        name: output
        for name, output in recording.outputs.items()
        if output is not None and name in known and output != recording.array_inputs.get(name)
    }


def element_write(layout: Layout, name: str, value: str) -> list[str]:
    """Return what stores an element of an array without blocks."""
    storage = layout.element_format(name)
    words = random_word(layout, name) if dict(layout.formats)[name].is_random else []
    addresses = column_names(name, storage)
    return [*words, *storage.kernel_write(addresses, layout.index, value, "word")]


def scalar_reads(layout: Layout, places: Mapping[str, str] | None = None) -> list[str]:
    """Return what a tensor's elements have in common, read from row ``tensor`` of ``scalars``.

    Args:
        layout: what the kernel is for.
        places: of numbers that are read from elsewhere, by their names.
    """
    recording, number = layout.form.recording(), layout.compute
    row, length = scalar_row(recording), row_length(layout)
    truths, elsewhere = truths_of(recording), {}
    for name, place in (places or {}).items():
        elsewhere[recording.scalar_inputs[name]] = place
    reads = {
        v: f"load_float64({elsewhere.get(v, f'scalars, tensor * {length} + {i}')})"
        for i, v in enumerate(row)
    }
    lines = []
    for value, name in array_names(recording).items():
        read = reads[value]
        read = f"{read} != 0.0" if value in truths else f"{number}({read})"
        lines.append(f"{name} = {read}")
    lines += [f"r{v.index} = {number}(1.0 / {reads[v]})" for v in scalar_divisors(recording)]
    return lines


def random_word(layout: Layout, name: str) -> list[str]:
    """Return what gives ``word`` the random bits of an array's element."""
    return kernel_word("word", f"{name}_origin", "i" if layout.block == 1 else "place")


def random_keys(layout: Layout, arrays: Collection[str]) -> list[str]:
    """Return what gives arrays that are rounded at random the keys of a chunk's random bits."""
    random = _random(layout, arrays)
    if not random:
        return []
    assert layout.count is not None
    dtypes, numbers = dict(layout.count_dtypes), dict(layout.numbers)
    row, length = list(dtypes).index(layout.count), row_length(layout)
    lines = [
        f"step_address = load_int64(counts, {row} * tensors + tensor)",
        f"step = int64(load_{dtypes[layout.count]}(step_address, 0))",
    ]
    if layout.has_step_in_row:
        lines = [f"step = int64(load_float64(scalars, tensor * {length} + {length - 1}))"]
    lines.append("key = load_int64(keys, tensor)")
    if layout.is_cut:
        lines.append("origin = load_int64(origins, chunk)")
    for name in random:
        first = first_number(layout)
        lines += kernel_key(f"{name}_key", "key", "step", numbers[name], first)
    return lines


def first_number(layout: Layout) -> str:
    """Return the variable of what random bits know a chunk's first element by."""
    return "origin" if layout.is_cut else "start"


def random_origins(layout: Layout, arrays: Collection[str], index: str) -> list[str]:
    """Return what the random bits of elements from number ``index`` (int32) on start from."""
    return [
        kernel_origin(f"{name}_origin", index, f"{name}_key") for name in _random(layout, arrays)
    ]


def _random(layout: Layout, arrays: Iterable[str]) -> list[str]:
    formats = dict(layout.formats)
    return [name for name in arrays if formats[name].is_random]
