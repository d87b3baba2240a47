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

import torch

from steprule.engines.cpu.block_text import update_in_blocks
from steprule.engines.cpu.element_text import (
    element_body,
    element_write,
    matrix_reads,
    random_keys,
    random_origins,
    written_arrays,
)
from steprule.engines.cpu.layout import (
    Layout,
    array_names,
    columns_with_offsets,
    grad_offset,
    in_flushed_mode,
    indented,
    scalar_row,
)
from steprule.engines.cpu.spelling import KERNEL_SPELLING
from steprule.engines.native.control_block import Control
from steprule.engines.printing import ExpressionPrinter, scalar_divisors, truths_of
from steprule.formats.storage import ROUNDING_STEP
from steprule.language.passes import update_operations
from steprule.language.recording import Recording, Value
from steprule.language.rule import OF_SHAPE, SUPPLIED

# Chunks whose memory is asked for while this many before them are updated: small tensors lie
# anywhere, and the processor would wait for each.
AHEAD = 4


@functools.cache
def source_of(layout: Layout) -> str:
    """Return the text of ``prepare`` and ``update``."""
    return "\n\n".join([prepare_source(layout), _update_source(layout)]) + "\n"


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
    """Return the reads of the tables that a loop over chunks looks at."""
    tables = [Control.TENSORS, Control.GRADS, Control.COLUMNS, Control.SCALARS, Control.CHUNKS]
    if layout.count is not None:
        tables += [Control.COUNTS, Control.KEYS]
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
    if layout.block > 1:
        return update_in_blocks(layout)
    recording, written = layout.form.recording(), written_arrays(layout)
    names = array_names(recording)
    printer = ExpressionPrinter(KERNEL_SPELLING, names, layout.compute, truths_of(recording))
    body = matrix_reads(layout, printer)
    body += element_body(layout, printer, update_operations(recording))
    for name, output in written.items():
        body += element_write(layout, name, printer.number(output))
    return [
        *random_keys(layout, written),
        *random_origins(layout, written, "int32(start)"),
        "for i in range(count):",
        *indented(body, 4),
    ]
