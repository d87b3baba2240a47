"""The kernel of a rule that tells rows from columns, for matrices: one thread to a matrix.

``update`` runs over chunks of a whole matrix each. For each level of reductions (passes.py) it
goes through the matrix once, row by row; then it evaluates in float64 what follows: the numbers of
the matrix, those of each row, those of each column. These it keeps in the matrix's part of a
workspace. A matrix stays in the cache from one level to the next, and since no other thread works
on it, sums have the same bits for any number of them.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from steprule.engines.cpu.kernel_text import chunk_reads, table_reads
from steprule.engines.kernels.axis_values import each_of, each_operands, each_places, is_of_arrays
from steprule.engines.kernels.element_text import (
    element_body,
    element_write,
    first_number,
    random_keys,
    random_origins,
    written_arrays,
)
from steprule.engines.kernels.finish_text import joined, scalar_slot_stores, term_of
from steprule.engines.kernels.layout import (
    Layout,
    array_names,
    column_names,
    in_flushed_mode,
    indented,
    scalar_row,
)
from steprule.engines.kernels.prepare_text import prepare_source
from steprule.engines.kernels.spelling import KERNEL_SPELLING
from steprule.engines.native.control_block import Control
from steprule.engines.printing import ExpressionPrinter, scalar_divisors, truths_of
from steprule.language.passes import levels_of, operations_for, update_operations
from steprule.language.recording import REDUCTIONS, Operation, Value


@functools.cache
def axis_source_of(layout: Layout) -> str:
    """Return the text of ``prepare`` and ``update``."""
    return "\n\n".join([prepare_source(layout), _Printer(layout).update_source()]) + "\n"


class _Printer:
    def __init__(self, layout: Layout) -> None:
        self._layout, self._recording = layout, layout.form.recording()
        recording = self._recording
        self._truths = truths_of(recording)
        self._levels = levels_of(recording)
        self._places = each_places(recording)
        self._divisors = set(scalar_divisors(recording))
        # Scalars in float64; in the loops over elements they are s0, s1… in the computing dtype.
        self._wide = {v: f"d{v.index}" for v in scalar_row(recording)}

    def update_source(self) -> str:
        body = [
            f"shapes = load_int64(control, {Control.SHAPES})",
            "height = int64(load_float64(shapes, tensor))",
            "width = int64(load_float64(shapes, tensors + tensor))",
            f"row_space = load_int64(load_int64(control, {Control.WORKSPACE}), tensor)",
            f"column_space = row_space + 8 * {len(self._places['row'])} * height",
        ]
        row = scalar_row(self._recording)
        for i, v in enumerate(row):
            read = f"load_float64(scalars, tensor * {len(row)} + {i})"
            body.append(f"{self._wide[v]} = {read}{' != 0.0' if v in self._truths else ''}")
        for level in range(max(self._levels.values()) + 1):
            body += self._level(level)
        body += self._update()
        for name, value in self._recording.each_inputs.items():
            body += self._slot_stores(name, value)
        made = {x.result for x in self._recording.tensor_operations}
        printer = ExpressionPrinter(KERNEL_SPELLING, self._wide, "float64", self._truths)
        body.append(f"counts = load_int64(control, {Control.COUNTS})")
        body += scalar_slot_stores(self._layout, printer, made)
        return in_flushed_mode(
            self._layout,
            "def update(control, first_chunk, last_chunk):",
            [
                *indented(table_reads(self._layout), 4),
                "    for chunk in range(first_chunk, last_chunk):",
                *indented([*chunk_reads(self._layout), *body], 8),
            ],
        )

    def _level(self, level: int) -> list[str]:
        """Return one level: its reductions, then what follows from them."""
        found = [x for x in self._recording.tensor_operations if self._levels[x.result] == level]
        reductions = [x for x in found if x.name in REDUCTIONS]
        of_arrays = [x for x in reductions if is_of_arrays(x)]
        body = self._reductions_of_arrays(of_arrays) if of_arrays else []
        for each in ("row", "column"):
            body += self._reductions_of_each(
                [x for x in reductions if x not in of_arrays and each_of(x) == each], each
            )
        for operation in found:
            if operation.result.is_scalar:
                body += self._scalar(operation)
        for each in ("row", "column"):
            inputs = [v for v in self._recording.each_inputs.values() if v.each == each]
            operations = [x for x in found if x.result.each == each and x not in reductions]
            body += self._each_loop(each, inputs if level == 0 else [], operations, of_arrays)
        return body

    def _reductions_of_arrays(self, reductions: Sequence[Operation]) -> list[str]:
        names = array_names(self._recording)
        compute = self._layout.compute
        printer = ExpressionPrinter(KERNEL_SPELLING, names, compute, self._truths)
        operations = operations_for(self._recording, [x for r in reductions for x in r.operands])
        used = each_operands((*operations, *reductions))
        before, inner = self._each_reads(used, names)
        inner += element_body(self._layout, printer, operations)
        body: list[str] = []
        after: list[str] = []
        for j, reduction in enumerate(reductions):
            factors = [f"float64({printer.number(x)})" for x in reduction.operands]
            inner.append(f"term{j} = {term_of(reduction, factors)}")
            if reduction.axis == -2:
                place = self._place(reduction.result, "c")
                body += ["for c in range(width):", f"    store_float64({place}, 0.0)"]
                inner.append(f"sum{j} = load_float64({place})")
                inner.append(f"store_float64({place}, {joined(reduction, j)})")
                continue
            inner.append(f"sum{j} = {joined(reduction, j)}")
            if reduction.axis is None:
                body.append(f"sum{j} = 0.0")
            else:
                before.append(f"sum{j} = 0.0")
                after.append(f"store_float64({self._place(reduction.result, 'r')}, sum{j})")
        body += _over_elements(before, inner, after)
        for j, reduction in enumerate(reductions):
            if reduction.axis is None:
                mean = " / float64(height * width)" if reduction.name == "mean_of" else ""
                body += self._named(reduction.result, f"sum{j}{mean}")
        return body

    def _reductions_of_each(self, reductions: Sequence[Operation], each: str) -> list[str]:
        if not reductions:
            return []
        index, count = _loop(each)
        names, reads = dict(self._wide), []
        for v in {
            x: None for r in reductions for x in r.operands if isinstance(x, Value) and x.each
        }:
            names[v] = f"e{v.index}"
            reads.append(f"e{v.index} = load_float64({self._place(v, index)})")
        printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", self._truths)
        body = [f"sum{j} = 0.0" for j in range(len(reductions))]
        body += [f"for {index} in range({count}):", *indented(reads, 4)]
        for j, reduction in enumerate(reductions):
            factors = [printer.number(x) for x in reduction.operands]
            body += [
                f"    term{j} = {term_of(reduction, factors)}",
                f"    sum{j} = {joined(reduction, j)}",
            ]
        for j, reduction in enumerate(reductions):
            mean = f" / float64({count})" if reduction.name == "mean_of" else ""
            body += self._named(reduction.result, f"sum{j}{mean}")
        return body

    def _scalar(self, operation: Operation) -> list[str]:
        if operation.name in REDUCTIONS:
            return []
        printer = ExpressionPrinter(KERNEL_SPELLING, self._wide, "float64", self._truths)
        return self._named(operation.result, printer.expression(operation))

    def _named(self, value: Value, text: str) -> list[str]:
        """Return what gives a scalar its names: in float64, in the computing dtype, inverted."""
        wide = self._wide[value] = f"d{value.index}"
        number = self._layout.compute
        lines = [f"{wide} = {text}"]
        is_truth = value in self._truths
        lines.append(f"s{value.index} = {wide if is_truth else f'{number}({wide})'}")
        if value in self._divisors:
            lines.append(f"r{value.index} = {number}(1.0 / {wide})")
        return lines

    def _each_loop(
        self,
        each: str,
        inputs: Sequence[Value],
        operations: Sequence[Operation],
        of_arrays: Sequence[Operation],
    ) -> list[str]:
        """Return the loop over rows, or columns, that evaluates what each has of its own."""
        index, count = _loop(each)
        other = "width" if each == "row" else "height"
        names, body = dict(self._wide), []
        slots = {value: name for name, value in self._recording.each_inputs.items()}
        for value in inputs:
            storage = self._layout.element_format(slots[value])
            stored = f"{slots[value]}_stored"
            body += storage.kernel_read(column_names(slots[value], storage), index, stored)
            body += self._kept(value, f"float64({stored})", index, names)
        for reduction in of_arrays:
            if reduction.result.each == each and reduction.name == "mean_of":
                read = f"load_float64({self._place(reduction.result, index)})"
                text = f"{read} / float64({other})"
                body += self._kept(reduction.result, text, index, names)
        printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", self._truths)
        for operation in operations:
            for x in operation.operands:
                if isinstance(x, Value) and x.each and x not in names:
                    names[x] = f"e{x.index}"
                    body.append(f"e{x.index} = load_float64({self._place(x, index)})")
            body += self._kept(operation.result, printer.expression(operation), index, names)
        return [f"for {index} in range({count}):", *indented(body, 4)] if body else []

    def _kept(self, value: Value, text: str, index: str, names: dict[Value, str]) -> list[str]:
        names[value] = f"e{value.index}"
        return [
            f"e{value.index} = {text}",
            f"store_float64({self._place(value, index)}, e{value.index})",
        ]

    def _place(self, value: Value, index: str) -> str:
        """Return where in the workspace a row's or column's number is: two arguments of a load."""
        assert value.each is not None
        count = "height" if value.each == "row" else "width"
        return f"{value.each}_space, {self._places[value.each][value]} * {count} + {index}"

    def _each_reads(
        self, used: Iterable[Value], names: dict[Value, str]
    ) -> tuple[list[str], list[str]]:
        """Return what reads, before a row's elements and for each, the numbers they need."""
        before: list[str] = []
        inner: list[str] = []
        for value in used:
            names[value] = f"a{value.index}"
            read = f"load_float64({self._place(value, 'r' if value.each == 'row' else 'c')})"
            line = f"a{value.index} = {self._layout.compute}({read})"
            (before if value.each == "row" else inner).append(line)
        return before, inner

    def _update(self) -> list[str]:
        recording = self._recording
        names = array_names(recording)
        printer = ExpressionPrinter(KERNEL_SPELLING, names, self._layout.compute, self._truths)
        operations = update_operations(recording)
        before, inner = self._each_reads(each_operands(operations), names)
        inner += element_body(self._layout, printer, operations)
        written = [name for name in written_arrays(self._layout) if name in recording.array_inputs]
        for name in written:
            text = printer.number(recording.outputs[name] or 0.0)
            inner += element_write(self._layout, name, text)
        keys = random_keys(self._layout, written)
        origins = random_origins(self._layout, written, f"int32({first_number(self._layout)})")
        return [*keys, *origins, *_over_elements(before, inner, [])]

    def _slot_stores(self, name: str, value: Value) -> list[str]:
        """Return what writes a slot of rows or columns."""
        output = self._recording.outputs[name]
        if output == value or not isinstance(output, Value):
            return []
        assert value.each is not None
        index, count = _loop(value.each)
        storage, number = self._layout.element_format(name), self._layout.compute
        text = f"{number}(load_float64({self._place(output, index)}))"
        stores = storage.kernel_write(column_names(name, storage), index, text)
        return [f"for {index} in range({count}):", *indented(stores, 4)]


def _over_elements(before: list[str], inner: list[str], after: list[str]) -> list[str]:
    return [
        "for r in range(height):",
        "    row_start = r * width",
        *indented(before, 4),
        "    for c in range(width):",
        "        i = row_start + c",
        *indented(inner, 8),
        *indented(after, 4),
    ]


def _loop(each: str) -> tuple[str, str]:
    return ("r", "height") if each == "row" else ("c", "width")
