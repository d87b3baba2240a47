"""What follows from sums over a tensor's elements, printed: scalars in float64, once a tensor."""

from __future__ import annotations

from collections.abc import Container, Sequence

from steprule.engines.kernels.layout import Layout, scalar_row
from steprule.engines.kernels.prepare_text import row_length
from steprule.engines.kernels.spelling import KERNEL_SPELLING
from steprule.engines.printing import ExpressionPrinter, truths_of
from steprule.language.passes import Pass
from steprule.language.recording import Operation, Value

_LARGER = "{1} if ({1} > {0}) | ({1} != {1}) else {0}"  # a nan comes through, and stays


def term_of(reduction: Operation, factors: Sequence[str]) -> str:
    """Return what an element, or a row, adds to a reduction."""
    return f"abs({factors[0]})" if reduction.name == "max_of" else " * ".join(factors)


def joined(operation: Operation, j: int) -> str:
    """Return a reduction's value so far and one more term, joined."""
    template = _LARGER if operation.name == "max_of" else "{0} + {1}"
    return template.format(f"sum{j}", f"term{j}")


def finish_statements(layout: Layout, one: Pass) -> list[str]:
    """Return what makes a tensor's scalars of the sums of a pass: ``sum0``, ``sum1``…"""
    recording = layout.form.recording()
    row, length, truths = scalar_row(recording), row_length(layout), truths_of(recording)
    made = {x.result for x in (*one.reductions, *one.scalar_operations)}
    names = {v: f"s{v.index}" for v in (*row, *made)}
    printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", truths)
    body = []
    for j, operation in enumerate(one.reductions):
        is_own_mean = operation.name == "mean_of" and not operation.is_shared
        mean = " / load_float64(elements, tensor)" if is_own_mean else ""
        body.append(f"{names[operation.result]} = sum{j}{mean}")
    for v in _read(one.scalar_operations, made):
        read = f"load_float64(scalars, tensor * {length} + {row.index(v)})"
        body.append(f"{names[v]} = {read}{' != 0.0' if v in truths else ''}")
    body += [f"{names[x.result]} = {printer.expression(x)}" for x in one.scalar_operations]
    for i, v in enumerate(row):
        if v in made:
            place = f"tensor * {length} + {i}"
            body.append(f"store_float64(scalars, {place}, {printer.number(v)})")
    return body + scalar_slot_stores(layout, printer, made)


def scalar_slot_stores(
    layout: Layout, printer: ExpressionPrinter, made: Container[Value]
) -> list[str]:
    """Return what writes the scalar slots that are among ``made``; ``prepare`` writes others."""
    lines = []
    for i, (name, dtype) in enumerate(layout.count_dtypes):
        new = layout.form.recording().outputs.get(name)
        if isinstance(new, Value) and new in made:
            lines.append(f"{name}_address = load_int64(counts, {i} * tensors + tensor)")
            lines.append(f"store_{dtype}({name}_address, 0, {dtype}({printer.number(new)}))")
    return lines


def _read(operations: tuple[Operation, ...], made: set[Value]) -> list[Value]:
    """Return the scalars that operations read and others made, in the order of first use."""
    read = (x for operation in operations for x in operation.operands)
    return list(dict.fromkeys(x for x in read if isinstance(x, Value) and x not in made))
