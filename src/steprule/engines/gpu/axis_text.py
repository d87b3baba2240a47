"""Rules that tell rows from columns, printed: a few rows of a matrix a program.

The numbers of each row and column are in a workspace, in float64. For each level of reductions
(``language/passes.py``) there are up to three kernels:

- ``rows_k`` runs over chunks of a few whole rows: it leaves the sums of its rows, what it adds to
  each column, and what it adds to sums over all;
- ``columns_k`` runs over strips of columns: it adds up what the chunks have left for each;
- ``finish_k`` runs over matrices: sums over all, and what follows from sums.

``update`` runs over the same chunks as ``rows_k``, ``slots`` over matrices: it stores the slots of
rows and columns. Sums are taken in the same order each time.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

from steprule.engines.gpu.arguments import head
from steprule.engines.gpu.reduction_text import over_tensors, sums_over_chunks
from steprule.engines.gpu.sums import added, as_added, as_number, joined, nothing_yet
from steprule.engines.gpu.tile_language import tile_statements
from steprule.engines.gpu.tiles import TILE, Tile, Variant
from steprule.engines.gpu.update_text import over_chunks
from steprule.engines.kernels.axis_values import (
    each_of,
    each_operands,
    each_places,
    is_of_arrays,
)
from steprule.engines.kernels.element_text import (
    element_body,
    element_write,
    first_number,
    random_keys,
    random_origins,
    written_arrays,
)
from steprule.engines.kernels.finish_text import scalar_slot_stores, term_of
from steprule.engines.kernels.layout import (
    array_names,
    column_names,
    indented,
    scalar_row,
)
from steprule.engines.kernels.prepare_text import row_length
from steprule.engines.kernels.spelling import KERNEL_SPELLING
from steprule.engines.printing import ExpressionPrinter, truths_of
from steprule.language.passes import levels_of, operations_for, update_operations
from steprule.language.recording import REDUCTIONS, Operation, Recording, Value

# A tile: so many rows and columns.
ROWS, COLUMNS = 16, TILE // 16
# Columns of a strip.
STRIP = 128
_SHAPE = f"({ROWS}, {COLUMNS})"


def level_count(recording: Recording) -> int:
    """Return how many levels of reductions a rule has, that of its inputs included."""
    return max(levels_of(recording).values()) + 1


def column_reductions(recording: Recording, level: int) -> list[Operation]:
    """Return the reductions of a level that make a number of each column."""
    return [x for x in _reductions_of_arrays(recording, level) if x.axis == -2]


def has_array_reductions(recording: Recording, level: int) -> bool:
    """Tell whether a level reads the elements."""
    return bool(_reductions_of_arrays(recording, level))


def _reductions_of_arrays(recording: Recording, level: int) -> list[Operation]:
    levels = levels_of(recording)
    return [
        x
        for x in recording.tensor_operations
        if levels[x.result] == level and x.name in REDUCTIONS and is_of_arrays(x)
    ]


@functools.cache
def rows_source(variant: Variant, level: int) -> str:
    """Return the text of ``rows_k``."""
    return _AxisText(variant).rows(level)


@functools.cache
def columns_source(variant: Variant, level: int) -> str:
    """Return the text of ``columns_k``."""
    return _AxisText(variant).columns(level)


@functools.cache
def level_source(variant: Variant, level: int) -> str:
    """Return the text of ``finish_k``."""
    return _AxisText(variant).finish(level)


@functools.cache
def axis_update_source(variant: Variant) -> str:
    """Return the text of ``update``."""
    return _AxisText(variant).update()


@functools.cache
def slots_source(variant: Variant) -> str:
    """Return the text of ``slots``."""
    return _AxisText(variant).slots()


class _AxisText:
    def __init__(self, variant: Variant) -> None:
        self._variant, self._layout = variant, variant.layout
        recording = self._recording = variant.layout.form.recording()
        self._truths = truths_of(recording)
        self._levels = levels_of(recording)
        self._places = each_places(recording)

    # Over chunks

    def rows(self, level: int) -> str:
        reductions = _reductions_of_arrays(self._recording, level)
        wide = [j for j, x in enumerate(reductions) if x.axis != -2]
        body = [f"sum{j} = {nothing_yet(reductions[j], _SHAPE)}" for j in wide]

        def tile(mask: str | None) -> list[str]:
            return self._reduced_tile(reductions, mask)

        operations = self._operations_of(reductions)
        body += self._over_tiles([*operations, *reductions], tile)
        over_all = [j for j, x in enumerate(reductions) if x.axis is None]
        for k, j in enumerate(over_all):
            number = joined(reductions[j], f"sum{j}")
            body.append(f"tl.store(partials + chunk * {len(over_all)} + {k}, {number})")
        for j in wide:
            if reductions[j].axis == -1:
                mean = " / width.to(tl.float64)" if reductions[j].name == "mean_of" else ""
                body.append(f"number = {joined(reductions[j], f'sum{j}', 1)}{mean}")
                place = self._pointer(reductions[j].result, "row + r")
                body.append(f"tl.store({place}, number, row_mask)")
        return "\n".join(
            [head(f"rows_{level}"), *indented(over_chunks(self._variant, self._in_rows(body)), 4)]
        )

    def _in_rows(self, body: Sequence[str]) -> list[str]:
        """Return a chunk's body, told which rows it has."""
        return [
            *self._spaces(),
            "row = (start // width).to(tl.int32)",
            "rows = count // width",
            f"r = tl.arange(0, {ROWS})[:, None]",
            "row_mask = r < rows",
            *body,
        ]

    def _spaces(self) -> list[str]:
        """Return what reads a matrix's size and where its numbers are."""
        return [
            "height = tl.load(shapes + tensor).to(tl.int32)",
            "width = tl.load(shapes + tensors + tensor).to(tl.int32)",
            "row_space = tl.load(spaces + tensor)",
            f"column_space = row_space + 8 * {len(self._places['row'])} * height",
            "parts = tl.load(spaces + tensors + tensor).to(tl.pointer_type(tl.float64))",
        ]

    def _over_tiles(self, operations: Sequence[Operation], tile: Tile) -> list[str]:
        """Return the loop over a chunk's tiles: without masks where all of them are whole."""
        before, inner = self._each_reads(operations)
        lines = list(before)
        for mask in (None, "mask"):
            loop = [
                f"c = base + tl.arange(0, {COLUMNS})[None, :]",
                "column_mask = c < width",
                "mask = row_mask & column_mask",
                f"i = r * {'width' if mask else f'tl.multiple_of(width, {COLUMNS})'} + c",
                *inner,
                *tile(mask),
            ]
            limits = "whole, width" if mask else "0, whole"
            lines += [f"for base in range({limits}, {COLUMNS}):", *indented(loop, 4)]
        return [
            # Where all tiles are whole and aligned; else none is taken to be.
            f"is_whole = is_aligned & (rows == {ROWS}) & (width % {COLUMNS} == 0)",
            "whole = tl.where(is_whole, width, 0)",
            *lines,
        ]

    def _reduced_tile(self, reductions: Sequence[Operation], mask: str | None) -> list[str]:
        recording = self._recording
        names = {**array_names(recording), **self._each_names()}
        printer = ExpressionPrinter(KERNEL_SPELLING, names, self._layout.compute, self._truths)
        body = element_body(self._layout, printer, self._operations_of(reductions))
        for j, reduction in enumerate(reductions):
            factors = [f"float64({printer.number(x)})" for x in reduction.operands]
            body.append(f"term{j} = {term_of(reduction, factors)}")
        lines = tile_statements(body, mask=mask)
        columns = [j for j, x in enumerate(reductions) if x.axis == -2]
        for j, reduction in enumerate(reductions):
            lines.append(f"term{j} = tl.where(mask, term{j}, 0.0)")
            if reduction.axis != -2:
                lines.append(f"sum{j} = {added(reduction, f'sum{j}', f'term{j}')}")
                continue
            number = joined(reduction, as_added(reduction, f"term{j}"), 0)
            part = f"(chunk - tl.load(starts + tensor)) * {len(columns)} + {columns.index(j)}"
            place = f"parts + ({part}) * width + c"
            lines.append(f"tl.store({place}, {number}, column_mask)")
        return lines

    def _operations_of(self, reductions: Sequence[Operation]) -> tuple[Operation, ...]:
        return operations_for(self._recording, [x for r in reductions for x in r.operands])

    def update(self) -> str:
        layout, recording = self._layout, self._recording
        operations = update_operations(recording)
        written = [name for name in written_arrays(layout) if name in recording.array_inputs]

        def tile(mask: str | None) -> list[str]:
            names = {**array_names(recording), **self._each_names()}
            printer = ExpressionPrinter(KERNEL_SPELLING, names, layout.compute, self._truths)
            lines = element_body(layout, printer, operations)
            for name in written:
                text = printer.number(recording.outputs[name] or 0.0)
                lines += element_write(layout, name, text)
            return tile_statements(lines, mask=mask)

        before = random_keys(layout, written) + random_origins(
            layout, written, f"int32({first_number(layout)})"
        )
        body = [*tile_statements(before), *self._in_rows(self._over_tiles(operations, tile))]
        return "\n".join([head("update"), *indented(over_chunks(self._variant, body), 4)])

    def _each_names(self) -> dict[Value, str]:
        return {value: f"a{value.index}" for places in self._places.values() for value in places}

    def _each_reads(self, operations: Iterable[Operation]) -> tuple[list[str], list[str]]:
        """Return what reads, before a chunk's tiles and in each, numbers of rows and columns."""
        before: list[str] = []
        inner: list[str] = []
        for value in each_operands(operations):
            is_row = value.each == "row"
            place = self._pointer(value, "row + r" if is_row else "c")
            mask = "row_mask" if is_row else "column_mask"
            read = f"tl.load({place}, {mask}, other=0.0).to(tl.{self._layout.compute})"
            (before if is_row else inner).append(f"a{value.index} = {read}")
        return before, inner

    def _pointer(self, value: Value, index: str) -> str:
        """Return where the numbers of rows, or columns, are."""
        assert value.each is not None
        count = "height" if value.each == "row" else "width"
        space = f"{value.each}_space.to(tl.pointer_type(tl.float64))"
        return f"{space} + {self._places[value.each][value]} * {count} + {index}"

    # Over strips

    def columns(self, level: int) -> str:
        reductions = column_reductions(self._recording, level)
        count = len(reductions)
        body = [
            *self._spaces(),
            f"c = strip + tl.arange(0, {STRIP})",
            "mask = c < width",
            "chunk_count = tl.load(starts + tensor + 1) - tl.load(starts + tensor)",
            *(f"sum{j} = {nothing_yet(x, f'({STRIP},)')}" for j, x in enumerate(reductions)),
            "for part in range(0, chunk_count.to(tl.int32)):",
        ]
        for j, reduction in enumerate(reductions):
            place = f"parts + (part * {count} + {j}) * width + c"
            body.append(f"    term{j} = tl.load({place}, mask, other=0.0)")
            body.append(f"    sum{j} = {added(reduction, f'sum{j}', f'term{j}')}")
        for j, reduction in enumerate(reductions):
            number = as_number(reduction, f"sum{j}")
            mean = " / height.to(tl.float64)" if reduction.name == "mean_of" else ""
            body.append(f"tl.store({self._pointer(reduction.result, 'c')}, {number}{mean}, mask)")
        read = [
            "tensor = tl.load(strips + 2 * tl.program_id(0))",
            "strip = tl.load(strips + 2 * tl.program_id(0) + 1).to(tl.int32)",
        ]
        return over_tensors(self._variant, f"columns_{level}", body, tensor=read)

    # Over matrices

    def finish(self, level: int) -> str:
        recording, row = self._recording, scalar_row(self._recording)
        found = [x for x in recording.tensor_operations if self._levels[x.result] == level]
        names = {v: f"d{v.index}" for v in row}
        over_all = [x for x in _reductions_of_arrays(recording, level) if x.axis is None]
        body = [*self._spaces(), *sums_over_chunks(over_all)]
        for v in self._scalars_read(found):
            length = row_length(self._layout)
            text = f"tl.load(scalars + tensor * {length} + {row.index(v)})"
            body.append(f"d{v.index} = {text}{' != 0.0' if v in self._truths else ''}")
        for j, reduction in enumerate(over_all):
            mean = " / (height.to(tl.float64) * width)" if reduction.name == "mean_of" else ""
            names[reduction.result] = f"d{reduction.result.index}"
            body.append(f"d{reduction.result.index} = sum{j}{mean}")
        reductions = [x for x in found if x.name in REDUCTIONS]
        for reduction in reductions:
            if not is_of_arrays(reduction):
                body += self._reduction_of_each(reduction, names)
        for operation in found:
            if operation.result.is_scalar and operation not in reductions:
                printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", self._truths)
                text = printer.expression(operation)
                names[operation.result] = f"d{operation.result.index}"
                body += tile_statements([f"d{operation.result.index} = {text}"])
        made = {x.result for x in found if x.result.is_scalar}
        body += self._scalar_stores(made, names)
        for each in ("row", "column"):
            inputs = [v for v in recording.each_inputs.values() if v.each == each]
            operations = [x for x in found if x.result.each == each and x not in reductions]
            body += self._each_loop(each, inputs if level == 0 else [], operations, names)
        return over_tensors(self._variant, f"finish_{level}", body)

    def _scalars_read(self, operations: Sequence[Operation]) -> list[Value]:
        made = {x.result for x in operations}
        row = scalar_row(self._recording)
        read = (x for operation in operations for x in operation.operands)
        return list(dict.fromkeys(x for x in read if x in row and x not in made))

    def _scalar_stores(self, made: set[Value], names: dict[Value, str]) -> list[str]:
        row, length = scalar_row(self._recording), row_length(self._layout)
        printer = ExpressionPrinter(KERNEL_SPELLING, names, "float64", self._truths)
        stores = [
            f"store_float64(scalars, tensor * {length} + {i}, {printer.number(v)})"
            for i, v in enumerate(row)
            if v in made
        ]
        return tile_statements([*stores, *scalar_slot_stores(self._layout, printer, made)])

    def _reduction_of_each(self, reduction: Operation, names: dict[Value, str]) -> list[str]:
        """Return a reduction of numbers of rows, or of columns."""
        each = each_of(reduction)
        assert each is not None
        count = "height" if each == "row" else "width"
        reads, known = self._loop_reads(each, [reduction], names)
        printer = ExpressionPrinter(KERNEL_SPELLING, known, "float64", self._truths)
        term = term_of(reduction, [printer.number(x) for x in reduction.operands])
        name = f"d{reduction.result.index}"
        names[reduction.result] = name
        mean = f" / {count}.to(tl.float64)" if reduction.name == "mean_of" else ""
        loop = [*reads, *tile_statements([f"term = {term}"]), "term = tl.where(mask, term, 0.0)"]
        loop.append(f"total = {added(reduction, 'total', 'term')}")
        return [
            f"total = {nothing_yet(reduction, f'({TILE},)')}",
            *_over(count, loop),
            f"{name} = {joined(reduction, 'total')}{mean}",
        ]

    def _each_loop(
        self,
        each: str,
        inputs: Sequence[Value],
        operations: Sequence[Operation],
        names: dict[Value, str],
    ) -> list[str]:
        """Return the loop over rows, or columns, that evaluates what each has of its own."""
        slots = {value: name for name, value in self._recording.each_inputs.items()}
        body: list[str] = []
        known = dict(names)
        for value in inputs:
            storage, stored = self._layout.element_format(slots[value]), f"{slots[value]}_stored"
            addresses = self._slot_addresses(slots[value])
            body += addresses
            read = storage.kernel_read(column_names(slots[value], storage), "i", stored)
            body += tile_statements([*read, f"e{value.index} = float64({stored})"], mask="mask")
            body.append(f"tl.store({self._pointer(value, 'i')}, e{value.index}, mask)")
            known[value] = f"e{value.index}"
        reads, known = self._loop_reads(each, operations, known)
        body += reads
        printer = ExpressionPrinter(KERNEL_SPELLING, known, "float64", self._truths)
        for operation in operations:
            name = f"e{operation.result.index}"
            body += tile_statements([f"{name} = {printer.expression(operation)}"])
            printer.names[operation.result] = name
            body.append(f"tl.store({self._pointer(operation.result, 'i')}, {name}, mask)")
        return _over("height" if each == "row" else "width", body) if body else []

    def _loop_reads(
        self, each: str, operations: Sequence[Operation], names: dict[Value, str]
    ) -> tuple[list[str], dict[Value, str]]:
        known, reads = dict(names), []
        made = {x.result for x in operations}
        for value in each_operands(operations):
            if value not in known and value not in made:
                known[value] = f"e{value.index}"
                read = f"tl.load({self._pointer(value, 'i')}, mask, other=0.0)"
                reads.append(f"e{value.index} = {read}")
        return reads, known

    def _slot_addresses(self, name: str) -> list[str]:
        """Return what finds a slot of rows or columns: another program has its elements."""
        columns = [
            variable
            for array, storage in self._layout.formats
            if array != "grad"
            for variable in column_names(array, storage)
        ]
        wanted = column_names(name, self._layout.element_format(name))
        return [f"{v} = tl.load(columns + {columns.index(v)} * tensors + tensor)" for v in wanted]

    def slots(self) -> str:
        body = self._spaces()
        for name, value in self._recording.each_inputs.items():
            output = self._recording.outputs[name]
            if output == value or not isinstance(output, Value):
                continue
            storage = self._layout.element_format(name)
            compute = self._layout.compute
            stores = storage.kernel_write(column_names(name, storage), "i", "number")
            loop = [
                f"number = tl.load({self._pointer(output, 'i')}, mask).to(tl.{compute})",
                *self._slot_addresses(name),
                *tile_statements(stores, mask="mask"),
            ]
            body += _over("height" if value.each == "row" else "width", loop)
        return over_tensors(self._variant, "slots", body)


def _over(count: str, body: Sequence[str]) -> list[str]:
    """Return a loop over all rows, or columns."""
    index = [f"i = base + tl.arange(0, {TILE})", f"mask = i < {count}"]
    return [f"for base in range(0, {count}, {TILE}):", *indented([*index, *body], 4)]
