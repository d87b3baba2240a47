"""What a step does once for each tensor, printed: its count advanced, its scalars in float64.

The statements are for one tensor, number ``tensor``; ``prepare`` has a loop round them, for step
counts that the processor reaches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from steprule.engines.kernels.layout import Layout, indented, scalar_row
from steprule.engines.kernels.spelling import KERNEL_SPELLING
from steprule.engines.native.control_block import Control
from steprule.engines.printing import ExpressionPrinter, truths_of
from steprule.formats.storage import ROUNDING_STEP
from steprule.language.recording import Recording, Value
from steprule.language.rule import OF_SHAPE, SUPPLIED

_PREPARED_FROM = (
    Control.TENSORS,
    Control.GRADS,
    Control.COUNTS,
    Control.GROUPS,
    Control.NUMBERS,
    Control.FIRSTS,
    Control.SCALARS,
    Control.SHAPES,
)
# The word of the group whose numbers a tensor takes; no slot has this name.
_GROUP = "_group"


@dataclass
class PrepareText:
    """The statements, in the order in which they run.

    Attributes:
        constants: what holds for all tensors.
        reads: what a tensor's scalars depend on, each in the variable ``in_<name>``.
        inputs: the names of those.
        computed: its scalars, left in its row of the table ``scalars``.
        stores: its step count and scalar slots.
        held: variables of ``computed`` that ``stores`` reads.
    """

    constants: list[str] = field(default_factory=list)
    reads: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    computed: list[str] = field(default_factory=list)
    stores: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)


def row_length(layout: Layout) -> int:
    """Return how many numbers a tensor's row of ``scalars`` has."""
    return len(scalar_row(layout.form.recording())) + layout.has_step_in_row


def prepare_text(layout: Layout) -> PrepareText:
    """Return the statements for a layout."""
    recording = layout.form.recording()
    text = PrepareText(inputs=[_GROUP])
    text.reads.append(f"in_{_GROUP} = load_int64(groups, tensor)")
    _read_inputs(layout, text)
    row = scalar_row(recording)
    counts = dict(layout.count_dtypes)
    slots = [n for n in counts if n not in ("step", ROUNDING_STEP)]
    if row or slots:
        _compute(layout, text, slots)
    if layout.has_step_in_row:
        # As the count is stored.
        step = f"float64({counts[layout.count or '']}(in_{layout.count}))"
        place = f"tensor * {row_length(layout)} + {len(row)}"
        text.stores.append(f"store_float64(scalars, {place}, {step})")
    return text


def prepare_source(layout: Layout) -> str:
    """Return the text of ``prepare``: tensors with the inputs of the one before share its row."""
    text, length = prepare_text(layout), row_length(layout)
    lines = [
        "def prepare(control, _first, _last):",
        *(f"    {table.name.lower()} = load_int64(control, {table})" for table in _PREPARED_FROM),
        *indented(text.constants, 4),
        *(f"    {name} = 0.0" for name in text.held),
        "    previous = -1",
        *(f"    previous_{name} = {_nothing(name)}" for name in text.inputs),
        "    for tensor in range(tensors):",
        "        if load_int64(grads, tensor) == 0:",
        "            continue",
        *indented(text.reads, 8),
    ]
    if text.computed:
        unchanged = ["previous >= 0", *(f"in_{n} == previous_{n}" for n in text.inputs)]
        lines += [
            f"        if {' and '.join(unchanged)}:",
            f"            for i in range({length}):",
            f"                store_float64(scalars, tensor * {length} + i, "
            f"load_float64(scalars, previous * {length} + i))",
            "        else:",
            *indented(text.computed, 12),
        ]
    lines += [
        *indented(text.stores, 8),
        *(f"        previous_{name} = in_{name}" for name in text.inputs),
        "        previous = tensor",
        "    return 0",
    ]
    return "\n".join(lines)


def _nothing(name: str) -> str:
    return "0" if name == _GROUP else "0.0"


def _read_inputs(layout: Layout, text: PrepareText) -> None:
    form = layout.form
    for i, (name, dtype) in enumerate(layout.count_dtypes):
        address, read = f"{name}_address", f"in_{name} = float64(load_{dtype}({name}_address, 0))"
        text.reads.append(f"{address} = load_int64(counts, {i} * tensors + tensor)")
        if name in ("step", ROUNDING_STEP):
            text.reads.append(f"{read} + 1.0")
            text.stores.append(f"store_{dtype}({address}, 0, {dtype}(in_{name}))")
        else:
            text.reads.append(read)
        text.inputs.append(name)
    if "machine_eps" in form.scalars:
        param = dict(layout.formats)["param"].columns[0]
        text.constants.append(f"in_machine_eps = {torch.finfo(param.dtype).eps!r}")
        text.inputs.append("machine_eps")
    for i, name in enumerate(OF_SHAPE):
        if name in form.scalars:
            text.reads.append(f"in_{name} = load_float64(shapes, {i} * tensors + tensor)")
            text.inputs.append(name)
    if "first" in form.scalars:
        text.reads.append("in_first = load_float64(firsts, tensor)")
        text.reads.append("store_float64(firsts, tensor, 0.0)")
        text.inputs.append("first")


def _compute(layout: Layout, text: PrepareText, slots: list[str]) -> None:
    form, recording = layout.form, layout.form.recording()
    numbers = [name for name in form.scalars if name not in SUPPLIED]
    names = {v: f"s{v.index}" for v in _scalar_values(recording)}
    row, length = scalar_row(recording), row_length(layout)
    counts = dict(layout.count_dtypes)
    text.computed += [
        f"{names[recording.scalar_inputs[name]]} = "
        f"load_float64(numbers, in_{_GROUP} * {len(numbers)} + {i})"
        for i, name in enumerate(numbers)
    ]
    text.computed += [
        f"{names[recording.scalar_inputs[n]]} = in_{n}"
        for n in text.inputs
        if n in recording.scalar_inputs
    ]
    printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", truths_of(recording))
    for operation in recording.scalar_operations:
        text.computed.append(f"{names[operation.result]} = {printer.expression(operation)}")
    text.computed += [
        f"store_float64(scalars, tensor * {length} + {i}, {printer.number(v)})"
        for i, v in enumerate(row)
        if v in names
    ]
    for n in slots:
        new = recording.outputs[n]
        if isinstance(new, Value) and new not in names:  # it follows from a reduction
            continue
        text.held.append(f"new_{n}")
        text.computed.append(f"new_{n} = {printer.number(new or 0.0)}")
        text.stores.append(f"store_{counts[n]}({n}_address, 0, {counts[n]}(new_{n}))")


def _scalar_values(recording: Recording) -> list[Value]:
    computed = [operation.result for operation in recording.scalar_operations]
    return [*recording.scalar_inputs.values(), *computed]
