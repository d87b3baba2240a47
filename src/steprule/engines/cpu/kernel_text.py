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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from steprule.engines.cpu.spelling import KERNEL_SPELLING
from steprule.engines.native.control_block import Control
from steprule.engines.printing import ExpressionPrinter, scalar_divisors, truths_of
from steprule.formats import BlockFormat, Column, Format
from steprule.formats.random_bits import kernel_key, kernel_word
from steprule.formats.storage import ROUNDING_STEP
from steprule.language.form import Form
from steprule.language.passes import update_operations
from steprule.language.recording import Operation, Recording, Value
from steprule.language.rule import OF_SHAPE, SUPPLIED

# Chunks whose memory is asked for while this many before them are updated: small tensors lie
# anywhere, and the processor would wait for each.
AHEAD = 4


@dataclass(frozen=True)
class Layout:
    """What a kernel is compiled for: a form, and how each of its arrays is stored.

    ``numbers`` are what random bits know the arrays by, ``count`` is the step count that these
    depend on, if there are any.
    """

    form: Form
    formats: tuple[tuple[str, Format], ...]
    count_dtypes: tuple[tuple[str, str], ...]
    compute: str
    numbers: tuple[tuple[str, int], ...] = ()
    count: str | None = None

    @functools.cached_property
    def block(self) -> int:
        """How many elements are taken at a time because they share scales; 1 if none do."""
        blocks = [f.block for _, f in self.formats if isinstance(f, BlockFormat)]
        return max(blocks, default=1)

    @property
    def index(self) -> str:
        """The variable of an element's number in its chunk."""
        return "i" if self.block == 1 else "at"

    def has_blocks(self, name: str) -> bool:
        """Tell whether the elements of an array share scales."""
        return isinstance(dict(self.formats)[name], BlockFormat)


def column_names(array: str, storage: Format) -> list[str]:
    """Return the names of the address variables of one array."""
    return [
        f"{array}_{column.part}_address" if column.part else f"{array}_address"
        for column in storage.columns
    ]


@functools.cache
def source_of(layout: Layout) -> str:
    """Return the text of ``prepare`` and ``update``."""
    return "\n\n".join([prepare_source(layout), _update_source(layout)]) + "\n"


def scalar_row(recording: Recording) -> list[Value]:
    """Return the scalar quantities that ``prepare`` leaves for ``update``, in table order."""
    return recording.scalars_for_arrays()


def prepare_source(layout: Layout) -> str:
    """Return the text of ``prepare``."""
    form, recording = layout.form, layout.form.recording()
    hyperparameters = [name for name in form.scalars if name not in SUPPLIED]
    counts = dict(layout.count_dtypes)
    names = {v: f"s{v.index}" for v in _scalar_values(recording)}
    row = scalar_row(recording)
    lines = [
        "def prepare(control, _first, _last):",
        f"    tensors = load_int64(control, {Control.TENSORS})",
        f"    grads = load_int64(control, {Control.GRADS})",
        f"    counts = load_int64(control, {Control.COUNTS})",
        f"    groups = load_int64(control, {Control.GROUPS})",
        f"    numbers = load_int64(control, {Control.NUMBERS})",
        f"    firsts = load_int64(control, {Control.FIRST})",
        f"    scalars = load_int64(control, {Control.SCALARS})",
        "    previous = -1",
    ]
    inputs = ["_group"]  # no slot's name
    body: list[str] = ["in__group = load_int64(groups, tensor)"]
    stores: list[str] = []
    for i, (name, dtype) in enumerate(layout.count_dtypes):
        body.append(f"{name}_address = load_int64(counts, {i} * tensors + tensor)")
        if name in ("step", ROUNDING_STEP):
            body.append(f"in_{name} = float64(load_{dtype}({name}_address, 0)) + 1.0")
            stores.append(f"store_{dtype}({name}_address, 0, {dtype}(in_{name}))")
        else:
            body.append(f"in_{name} = float64(load_{dtype}({name}_address, 0))")
        inputs.append(name)
    if "machine_eps" in form.scalars:
        param = dict(layout.formats)["param"].columns[0]
        lines.append(f"    in_machine_eps = {torch.finfo(param.dtype).eps!r}")
        inputs.append("machine_eps")
    for i, name in enumerate(OF_SHAPE):
        if name in form.scalars:
            lines.append(f"    {name}_of = load_int64(control, {Control.SHAPES})")
            body.append(f"in_{name} = load_float64({name}_of, {i} * tensors + tensor)")
            inputs.append(name)
    if "first" in form.scalars:
        body += ["in_first = load_float64(firsts, tensor)", "store_float64(firsts, tensor, 0.0)"]
        inputs.append("first")
    lines += [f"    previous_{name} = {'0.0' if name != '_group' else '0'}" for name in inputs]
    lines += [
        "    for tensor in range(tensors):",
        "        if load_int64(grads, tensor) == 0:",
        "            continue",
        *(f"        {line}" for line in body),
    ]
    slots = [n for n in counts if n not in ("step", ROUNDING_STEP)]
    if row or slots:
        unchanged = " and ".join(["previous >= 0", *(f"in_{n} == previous_{n}" for n in inputs)])
        computed = [
            f"{names[recording.scalar_inputs[name]]} = "
            f"load_float64(numbers, in__group * {len(hyperparameters)} + {i})"
            for i, name in enumerate(hyperparameters)
        ]
        computed += [
            f"{names[recording.scalar_inputs[n]]} = in_{n}"
            for n in inputs
            if n in recording.scalar_inputs
        ]
        printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", truths_of(recording))
        for operation in recording.scalar_operations:
            computed.append(f"{names[operation.result]} = {printer.expression(operation)}")
        computed += [
            f"store_float64(scalars, tensor * {len(row)} + {i}, {printer.number(v)})"
            for i, v in enumerate(row)
            if v in names
        ]
        for n in slots:
            new = recording.outputs[n]
            if isinstance(new, Value) and new not in names:  # it follows from a reduction
                continue
            computed.append(f"new_{n} = {printer.number(new or 0.0)}")
            stores.append(f"store_{counts[n]}({n}_address, 0, {counts[n]}(new_{n}))")
            lines.insert(lines.index("    previous = -1"), f"    new_{n} = 0.0")
        lines += [
            f"        if {unchanged}:",
            f"            for i in range({len(row)}):",
            f"                store_float64(scalars, tensor * {len(row)} + i, "
            f"load_float64(scalars, previous * {len(row)} + i))",
            "        else:",
            *(f"            {line}" for line in computed),
        ]
    lines += [f"        {line}" for line in stores]
    lines += [f"        previous_{name} = in_{name}" for name in inputs]
    lines += ["        previous = tensor", "    return 0"]
    return "\n".join(lines)


def _scalar_values(recording: Recording) -> list[Value]:
    computed = [operation.result for operation in recording.scalar_operations]
    return [*recording.scalar_inputs.values(), *computed]


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
    """Return the reads of the tables that a loop over chunks looks at, and its own memory."""
    tables = [Control.TENSORS, Control.GRADS, Control.COLUMNS, Control.SCALARS, Control.CHUNKS]
    if layout.count is not None:
        tables += [Control.COUNTS, Control.KEYS]
    rooms = [
        f"{name}_room = scratch({4 * layout.block})"
        for name, _ in layout.formats
        if layout.has_blocks(name)
    ]
    return [*(f"{table.name.lower()} = load_int64(control, {table})" for table in tables), *rooms]


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


def grad_offset(layout: Layout) -> str:
    """Return how far element ``start`` of a gradient is from its first one."""
    (column,) = dict(layout.formats)["grad"].columns
    return _offset(column)


def _offset(column: Column) -> str:
    # A complex number is two elements.
    size = column.dtype.to_real().itemsize
    if column.elements == 1:
        return f"{size} * start"
    return f"{size} * (start >> {column.elements.bit_length() - 1})"


def in_flushed_mode(layout: Layout, head: str, body: list[str]) -> str:
    """Return a function whose body runs with denormals as zero, unless the rule keeps them."""
    flushes = not layout.form.rule.keeps_denormals
    return "\n".join(
        [
            head,
            *(["    mode = flush_denormals()"] if flushes else []),
            *body,
            *(["    restore_denormals(mode)"] if flushes else []),
            "    return 0",
        ]
    )


def indented(lines: Iterable[str], by: int) -> list[str]:
    """Indent lines by so many spaces."""
    return [" " * by + line for line in lines]


def array_names(recording: Recording) -> dict[Value, str]:
    """Return the names, in a loop over elements, of what is in a tensor's row of scalars."""
    row = scalar_row(recording)
    return {v: f"x{v.index}" if v.is_array else f"s{v.index}" for v in row}


def scalar_reads(layout: Layout) -> list[str]:
    """Return what a tensor's elements have in common, read from row ``tensor`` of ``scalars``."""
    recording, number = layout.form.recording(), layout.compute
    row = scalar_row(recording)
    truths = truths_of(recording)
    lines = []
    for i, (value, name) in enumerate(array_names(recording).items()):
        read = f"load_float64(scalars, tensor * {len(row)} + {i})"
        read = f"{read} != 0.0" if value in truths else f"{number}({read})"
        lines.append(f"{name} = {read}")
    lines += [
        f"r{v.index} = {number}(1.0 / load_float64(scalars, tensor * {len(row)} + {row.index(v)}))"
        for v in scalar_divisors(recording)
    ]
    return lines


def element_loop(layout: Layout) -> list[str]:
    """Return the loop over ``count`` elements from the addresses in the columns' variables."""
    recording, formats = layout.form.recording(), dict(layout.formats)
    names = array_names(recording)
    printer = ExpressionPrinter(KERNEL_SPELLING, names, layout.compute, truths_of(recording))
    matrices = matrix_names(recording)
    reads = []
    for value, name in matrices.items():
        names[value] = f"{name}_value"
        reads.append(f"{names[value]} = {layout.compute}({_element_read(layout, name)})")
    body = [*reads, *element_body(layout, printer, update_operations(recording))]
    written = []
    for name, output in recording.outputs.items():
        if output is None or name not in formats or output == recording.array_inputs.get(name):
            continue
        written.append(name)
        body += element_write(layout, name, printer.number(output))
    return over_elements(layout, body, written, _keys(layout, written))


def _keys(layout: Layout, written: Iterable[str]) -> list[str]:
    """Return what gives arrays that are rounded at random the keys of a chunk's random bits."""
    formats, dtypes, numbers = (
        dict(layout.formats),
        dict(layout.count_dtypes),
        dict(layout.numbers),
    )
    random = [name for name in written if formats[name].is_random]
    if not random:
        return []
    assert layout.count is not None
    row = list(dtypes).index(layout.count)
    lines = [
        f"step_address = load_int64(counts, {row} * tensors + tensor)",
        f"step = int64(load_{dtypes[layout.count]}(step_address, 0))",
        "key = load_int64(keys, tensor)",
    ]
    for name in random:
        lines += kernel_key(f"{name}_key", "key", "step", numbers[name], "start")
    return lines


def over_elements(
    layout: Layout, body: Sequence[str], written: Sequence[str], before: Sequence[str] = ()
) -> list[str]:
    """Return a loop over a chunk's elements.

    Args:
        layout: what the kernel is for.
        body: what is done with element ``layout.index``.
        written: the arrays that the body writes.
        before: what stands before the loop.
    """
    if layout.block == 1:
        origin = ["origin = int32(start)"] if before else []
        return [*before, *origin, "for i in range(count):", *indented(body, 4)]
    digits = layout.block.bit_length() - 1
    return [
        *before,
        f"for block in range(count >> {digits}):",
        f"    first = block << {digits}",
        *indented(_over_block(layout, body, written, str(layout.block)), 4),
        f"first = count >> {digits} << {digits}",
        "tail = count - first",
        "if tail > 0:",
        *indented(_over_block(layout, body, written, "tail"), 4),
    ]


def _over_block(
    layout: Layout, body: Sequence[str], written: Sequence[str], count: str
) -> list[str]:
    """Return a loop over the elements of a block, with what fills its rooms and empties them."""
    lines = ["origin = int32(start + first)"]
    arrays = [
        (name, storage, f"{name}_room", column_names(name, storage))
        for name, storage in layout.formats
        if isinstance(storage, BlockFormat)
    ]
    for name, storage, room, addresses in arrays:
        lines += storage.kernel_read_block(name, addresses, count, room)
    lines += [f"for i in independent({count}):", "    at = first + i", *indented(body, 4)]
    for name, storage, room, addresses in arrays:
        if name in written:
            lines += storage.kernel_write_block(name, addresses, count, room, f"{name}_key")
    return lines


def _element_read(layout: Layout, name: str) -> str:
    storage = dict(layout.formats)[name]
    if layout.has_blocks(name):
        return f"load_float32({name}_room, i)"
    return storage.kernel_read(column_names(name, storage), layout.index)


def element_write(layout: Layout, name: str, value: str) -> list[str]:
    """Return what stores a number as the element of an array at hand."""
    storage = dict(layout.formats)[name]
    if layout.has_blocks(name):
        return [f"store_float32({name}_room, i, float32({value}))"]
    words = kernel_word("word", "(origin + int32(i))", f"{name}_key") if storage.is_random else []
    return [
        *words,
        *storage.kernel_write(column_names(name, storage), layout.index, value, "word"),
    ]


def element_body(
    layout: Layout, printer: ExpressionPrinter, operations: Iterable[Operation]
) -> list[str]:
    """Return what reads element ``i`` of each array and carries out operations on them."""
    recording, number, names = layout.form.recording(), layout.compute, printer.names
    divisors = scalar_divisors(recording)
    body = []
    for name, value in recording.array_inputs.items():
        names[value] = f"{name}_value"
        body.append(f"{names[value]} = {number}({_element_read(layout, name)})")
    for operation in operations:
        names[operation.result] = f"x{operation.result.index}"
        divisor = operation.operands[-1]
        if operation.name == "div" and divisor in divisors:
            # One division a tensor instead of one an element; half an ulp apart at most.
            dividend = operation.operands[0]
            assert isinstance(divisor, Value)
            text = f"({printer.number(dividend)} * r{divisor.index})"
        else:
            text = printer.expression(operation)
        body.append(f"{names[operation.result]} = {text}")
    return body


def matrix_names(recording: Recording) -> dict[Value, str]:
    """Return the names of the columns that matrix operations work in, by their results."""
    return {x.result: f"matrix_{i}" for i, x in enumerate(recording.matrix_operations)}


def columns_with_offsets(layout: Layout) -> list[tuple[str, str]]:
    """Return the variable of each column but the gradient's, and how far element ``start`` is."""
    return [
        (variable, _offset(column))
        for name, storage in layout.formats
        if name != "grad"
        for variable, column in zip(column_names(name, storage), storage.columns, strict=True)
    ]
