"""The passes before an update, and the sums of squares for guards, printed.

As on the CPU: ``reduce_k`` runs over chunks and leaves a float64 for each chunk and reduction,
``gather_k`` (of sums over several parameters) and ``finish_k`` over tensors. Each thread adds up
its elements of a chunk in order, and these sums are added in a fixed tree, so that a sum is the
same each time; it is not the CPU's to the last bit.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from steprule.engines.gpu.arguments import head
from steprule.engines.gpu.block_tiles import decoded_parts, opened_blocks
from steprule.engines.gpu.sums import added, joined, nothing_yet
from steprule.engines.gpu.tile_language import tile_statements
from steprule.engines.gpu.tiles import TILE, Variant, over_tiles, parts_of
from steprule.engines.gpu.update_text import admitted, over_chunks
from steprule.engines.kernels.element_text import element_body, element_printer, element_write
from steprule.engines.kernels.finish_text import finish_statements, term_of
from steprule.engines.kernels.layout import Layout, indented, matrix_names
from steprule.engines.kernels.prepare_text import prepare_text
from steprule.formats.floating import FloatingFormat
from steprule.language.passes import Pass, passes_of
from steprule.language.recording import Operation

# A tensor's chunks whose sums are read at a time.
_AT_ONCE = 256


@functools.cache
def reduce_source(variant: Variant, k: int) -> str:
    """Return the text of ``reduce_k``."""
    layout = variant.layout
    one = passes_of(layout.form.recording())[k]
    count = len(one.reductions)
    shape = f"({TILE},)"
    if layout.block > 1:
        shape = f"({TILE // layout.block}, {layout.block // parts_of(layout)})"
    body = [f"sum{j} = {nothing_yet(x, shape)}" for j, x in enumerate(one.reductions)]
    body += over_tiles(layout, lambda mask: _reduced_tile(layout, one, mask))
    for j, reduction in enumerate(one.reductions):
        number = joined(reduction, f"sum{j}")
        body.append(f"tl.store(partials + chunk * {count} + {j}, {number})")
    return "\n".join([head(f"reduce_{k}"), *indented(over_chunks(variant, body), 4)])


@functools.cache
def gather_source(variant: Variant, k: int) -> str:
    """Return the text of ``gather_k``."""
    one = passes_of(variant.layout.form.recording())[k]
    places = [f"sums + {j} * tensors + tensor" for j in range(len(one.reductions))]
    return over_tensors(
        variant,
        f"gather_{k}",
        [
            *sums_over_chunks(one.reductions),
            *(f"tl.store({place}, sum{j})" for j, place in enumerate(places)),
        ],
        [f"tl.store({place}, tl.full((), 0.0, tl.float64))" for place in places],
    )


@functools.cache
def finish_source(variant: Variant, k: int) -> str:
    """Return the text of ``finish_k``."""
    one = passes_of(variant.layout.form.recording())[k]
    if one.is_shared:
        numbers = range(len(one.reductions))
        sums = [f"sum{j} = tl.load(sums + {j} * tensors + tensor)" for j in numbers]
    else:
        sums = sums_over_chunks(one.reductions)
    finished = tile_statements(finish_statements(variant.layout, one))
    return over_tensors(variant, f"finish_{k}", [*sums, *finished])


@functools.cache
def prepare_source(variant: Variant) -> str:
    """Return the text of ``prepare``, for step counts that are on the device."""
    text = prepare_text(variant.layout)
    lines = [*text.constants, *text.reads, *text.computed, *text.stores]
    return over_tensors(variant, "prepare", tile_statements(lines))


@functools.cache
def square_sums_source(variant: Variant, storage: FloatingFormat) -> str:
    """Return the text of ``square_sums``, which runs over chunks of gradients stored so."""

    def tile(mask: str | None) -> list[str]:
        read = tile_statements(storage.kernel_read(["grad_address"], "i", "stored"), mask=mask)
        square = "tl.where(mask, value * value, 0.0)" if mask else "value * value"
        return [*read, "value = stored.to(tl.float64)", f"sum0 = sum0 + {square}"]

    body = [
        f"sum0 = {nothing_yet(None, f'({TILE},)')}",
        *over_tiles(variant.layout, tile, in_blocks=False),
        f"tl.store(partials + chunk, {joined(None, 'sum0')})",
    ]
    lines = over_chunks(variant, body, only_grads=True)
    return "\n".join([head("square_sums"), *indented(lines, 4)])


@functools.cache
def square_totals_source(variant: Variant) -> str:
    """Return the text of ``square_totals``, which runs over tensors."""
    place = "square_sums + tensor"
    return over_tensors(
        variant,
        "square_totals",
        [*sums_over_chunks([None]), f"tl.store({place}, sum0)"],
        [f"tl.store({place}, tl.full((), 0.0, tl.float64))"],
    )


def over_tensors(
    variant: Variant,
    name: str,
    body: Sequence[str],
    without_grad: Sequence[str] = (),
    *,
    tensor: Sequence[str] = ("tensor = tl.program_id(0)",),
) -> str:
    """Return a kernel of which a program does something for a tensor with a gradient.

    Args:
        variant: what the kernel is for.
        name: the kernel's.
        body: what is done, in Triton's language.
        without_grad: what is done for a tensor without one.
        tensor: what finds the program's tensor.
    """
    lines = [
        *tensor,
        "has_grad = tl.load(grads + tensor) != 0",
        f"if {admitted(variant, 'has_grad')}:",
        *indented(body or ["pass"], 4),
    ]
    if without_grad:
        lines += ["if has_grad == 0:", *indented(without_grad, 4)]
    return "\n".join([head(name), *indented(lines, 4)])


def _reduced_tile(layout: Layout, one: Pass, mask: str | None) -> list[str]:
    """Return what adds a tile of elements to each reduction."""
    recording = layout.form.recording()
    printer = element_printer(layout)
    body = element_body(layout, printer, one.array_operations)
    for j, operation in enumerate(one.reductions):
        factors = [f"float64({printer.number(x)})" for x in operation.operands]
        body.append(f"term{j} = {term_of(operation, factors)}")
    matrices = matrix_names(recording)
    for operation in one.matrix_operations:
        text = f"float32({printer.number(operation.operands[0])})"
        body += element_write(layout, matrices[operation.result], text)
    if layout.block == 1:
        return [*tile_statements(body, mask=mask), *_added(one.reductions, mask, "")]
    lines = [*opened_blocks(layout, mask), *decoded_parts(layout, mask, body)]
    for p in range(parts_of(layout)):
        lines += _added(one.reductions, f"mask_{p}" if mask else None, f"_{p}")
    return lines


def _added(reductions: Sequence[Operation], mask: str | None, suffix: str) -> list[str]:
    lines = []
    for j, reduction in enumerate(reductions):
        term = f"term{j}{suffix}"
        if mask:
            lines.append(f"{term} = tl.where({mask}, {term}, 0.0)")
        lines.append(f"sum{j} = {added(reduction, f'sum{j}', term)}")
    return lines


def sums_over_chunks(reductions: Sequence[Operation | None]) -> list[str]:
    """Return what puts together what a tensor's chunks left: ``sum0``, ``sum1``…

    None stands for a plain sum.
    """
    if not reductions:
        return []
    count = len(reductions)
    zeros = [f"sum{j} = {nothing_yet(x, f'({_AT_ONCE},)')}" for j, x in enumerate(reductions)]
    loop = [f"at = base + tl.arange(0, {_AT_ONCE})", "mask = at < last"]
    for j, reduction in enumerate(reductions):
        loop.append(f"term{j} = tl.load(partials + at * {count} + {j}, mask, other=0.0)")
        loop.append(f"sum{j} = {added(reduction, f'sum{j}', f'term{j}')}")
    return [
        *zeros,
        "last = tl.load(starts + tensor + 1).to(tl.int32)",
        f"for base in range(tl.load(starts + tensor).to(tl.int32), last, {_AT_ONCE}):",
        *indented(loop, 4),
        *(f"sum{j} = {joined(x, f'sum{j}')}" for j, x in enumerate(reductions)),
    ]
