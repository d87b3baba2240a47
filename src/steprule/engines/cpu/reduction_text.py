"""The passes before an update, printed: sums over elements, and the scalars made of them.

For pass k there are two functions over the kernel's control block:

- ``reduce_k`` runs over chunks, on any number of threads: it leaves one float64 for each chunk and
  reduction;
- ``finish_k`` runs over tensors: it adds up what a tensor's chunks left, in their order, and
  evaluates the scalar operations that follow. Where a reduction is over several parameters, it is
  ``gather_k`` that adds up, and leaves the sums in a table; once the totals are there, ``finish_k``
  reads them from it.

What a matrix operation is of, ``reduce_k`` writes to a column of its own, where the result is put.

A tensor is cut into the same chunks whatever the number of threads, so that a sum has the same bits
for any of them. Of n elements it is within (8192 + n / 8192) * 2**-53 * sum(abs(x)) of the exact
one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from steprule.engines.cpu.block_text import over_blocks
from steprule.engines.cpu.kernel_text import chunk_reads, table_reads
from steprule.engines.kernels.element_text import element_body, element_printer, element_write
from steprule.engines.kernels.finish_text import finish_statements, joined, term_of
from steprule.engines.kernels.layout import (
    Layout,
    in_flushed_mode,
    indented,
    matrix_names,
)
from steprule.engines.native.control_block import Control
from steprule.language.passes import Pass, passes_of


@functools.cache
def reductions_source_of(layout: Layout) -> str:
    """Return the text of ``reduce_0``, ``reduce_1``…: compiled so that sums may be reordered."""
    passes = passes_of(layout.form.recording())
    return "\n\n".join(_reduce_source(layout, k, one) for k, one in enumerate(passes)) + "\n"


@functools.cache
def finishes_source_of(layout: Layout) -> str:
    """Return the text of ``finish_0``, ``finish_1``…; empty without reductions."""
    texts = []
    for k, one in enumerate(passes_of(layout.form.recording())):
        texts += [_gather_source(k, one)] * one.is_shared + [_finish_source(layout, k, one)]
    return "".join("\n\n" + text for text in texts)


def finish_names(passes: Sequence[Pass]) -> tuple[str, ...]:
    """Return the names of what runs over tensors, in the order of its text."""
    names: list[str] = []
    for k, one in enumerate(passes):
        names += [f"gather_{k}"] * one.is_shared + [f"finish_{k}"]
    return tuple(names)


def _reduce_source(layout: Layout, k: int, one: Pass) -> str:
    count = len(one.reductions)
    if layout.block == 1:
        loop = ["for i in range(count):", *indented(_reduce_body(layout, one, True), 4)]
    else:
        loop = over_blocks(layout, lambda is_special: _reduce_body(layout, one, is_special))
    return in_flushed_mode(
        layout,
        f"def reduce_{k}(control, first_chunk, last_chunk):",
        [
            *indented(table_reads(layout), 4),
            f"    partials = load_int64(control, {Control.PARTIALS})",
            "    for chunk in range(first_chunk, last_chunk):",
            *indented(chunk_reads(layout), 8),
            *(f"        sum{j} = 0.0" for j in range(count)),
            *indented(loop, 8),
            *(
                f"        store_float64(partials, chunk * {count} + {j}, sum{j})"
                for j in range(count)
            ),
        ],
    )


def _reduce_body(layout: Layout, one: Pass, is_special: bool) -> list[str]:
    """Return what adds an element to each reduction."""
    recording = layout.form.recording()
    printer = element_printer(layout)
    body = element_body(layout, printer, one.array_operations, is_special=is_special)
    for j, operation in enumerate(one.reductions):
        factors = [f"float64({printer.number(x)})" for x in operation.operands]
        body += [f"term{j} = {term_of(operation, factors)}", f"sum{j} = {joined(operation, j)}"]
    matrices = matrix_names(recording)
    for operation in one.matrix_operations:
        name, text = matrices[operation.result], printer.number(operation.operands[0])
        text = f"float32({text})"  # the widest that iterations are taken in
        body += element_write(layout, name, text)
    return body


def _gather_source(k: int, one: Pass) -> str:
    count = len(one.reductions)
    stores = [f"store_float64(sums, {j} * tensors + tensor, sum{j})" for j in range(count)]
    without = [f"store_float64(sums, {j} * tensors + tensor, 0.0)" for j in range(count)]
    return _over_tensors(f"gather_{k}", [*_sums_over_chunks(one), *stores], without)


def _sums_over_chunks(one: Pass) -> list[str]:
    """Return what adds up the parts of a tensor's chunks, in their order."""
    count = len(one.reductions)
    if not count:
        return []
    body = [f"sum{j} = 0.0" for j in range(count)]
    body.append("for chunk in range(load_int64(starts, tensor), load_int64(starts, tensor + 1)):")
    for j, operation in enumerate(one.reductions):
        body.append(f"    term{j} = load_float64(partials, chunk * {count} + {j})")
        body.append(f"    sum{j} = {joined(operation, j)}")
    return body


def _finish_source(layout: Layout, k: int, one: Pass) -> str:
    body = _sums_over_chunks(one)
    if one.is_shared:
        body = [
            f"sum{j} = load_float64(sums, {j} * tensors + tensor)"
            for j in range(len(one.reductions))
        ]
    return _over_tensors(f"finish_{k}", [*body, *finish_statements(layout, one)])


def _over_tensors(name: str, body: list[str], without_grad: Sequence[str] = ()) -> str:
    """Return a function that does something for each tensor with a gradient."""
    tables = (
        Control.TENSORS,
        Control.GRADS,
        Control.COUNTS,
        Control.SCALARS,
        Control.PARTIALS,
        Control.STARTS,
        Control.ELEMENTS,
        Control.SUMS,
    )
    return "\n".join(
        [
            f"def {name}(control, _first, _last):",
            *(f"    {table.name.lower()} = load_int64(control, {table})" for table in tables),
            "    for tensor in range(tensors):",
            "        if load_int64(grads, tensor) == 0:",
            *indented(without_grad, 12),
            "            continue",
            *indented(body, 8),
            "    return 0",
        ]
    )
