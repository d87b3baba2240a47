"""Sums along rows and columns in rules: the same on every engine, as the formula on matrices."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import ENGINES, TOLERANCES, needs_torchs

import steprule
from steprule.ops import (
    dot_of,
    lerp,
    max_of,
    maximum,
    mean_of,
    norm_of,
    sqrt,
    square,
    sum_of,
    where,
)

SHAPES = [(5, 7), (100, 101), (1, 9001), (9001, 1), (64, 64)]


@steprule.rule(
    row_mean=steprule.Slot(shape="row"),
    col_max=steprule.Slot(shape="column"),
    seen=steprule.Slot(shape="scalar"),
)
def every_axis(param, grad, m, row_mean, col_max, seen, *, lr):  # type: ignore[no-untyped-def]
    """Sums of each kind, sums of these, numbers of rows and columns among each other."""
    row_mean = lerp(row_mean, mean_of(grad, axis=-1), 0.3)
    col_max = maximum(0.9 * col_max, max_of(grad, axis=-2))
    rows = norm_of(param, axis=-1) + abs(row_mean)
    columns = sqrt(sum_of(square(grad), axis=-2)) + 0.1 * dot_of(param, grad, axis=-2)
    columns = columns + 0.1 * dot_of(m, 2.0, axis=-2)
    largest = max_of(rows) + mean_of(row_mean, axis=-2)
    outer = (rows * columns) / (1.0 + largest)
    scale = where(largest > 0.5, 0.5, 1.0)
    m = 0.5 * m + (grad - row_mean) * scale / (1.0 + abs(outer))
    spread = norm_of(m - col_max * 0.01)
    return param - lr * m / (1.0 + spread), m, row_mean, col_max, seen + sum_of(columns)


EveryAxis: Any = steprule.make_optimizer(every_axis, name="EveryAxis", lr=0.1)


def trained(engine: str, dtype: torch.dtype, shapes: Any = SHAPES, **options: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    params: list[Any] = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes]
    params = [p.to(dtype).requires_grad_() for p in params]
    optimizer = EveryAxis(params, engine=engine, **options)
    for step in range(5):
        for i, param in enumerate(params):
            found = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = None if (step + i) % 4 == 3 else found.to(dtype)
        optimizer.step()
    asked = {row.engine for row in optimizer.explain().rows}
    return params, optimizer, asked


def flat(params: Any, optimizer: Any) -> list[torch.Tensor]:
    return [t for p in params for t in (p.detach(), *optimizer.state[p].values())]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_engines_agree(engine: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"maximize": True, "weight_decay": 0.01}
    if engine == "triton":  # long ones take an interpreter long
        options["shapes"] = [(min(a, 301), min(b, 301)) for a, b in SHAPES]
    params, optimizer, asked = trained(engine, dtype, **options)
    theirs, other, _ = trained("eager", dtype, **options)
    assert asked <= {engine, "none"}
    tolerance = TOLERANCES[dtype]
    if dtype is torch.float32:  # sums of 9000 numbers: in float32 on eager, in float64 in a kernel
        tolerance = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(flat(params, optimizer), flat(theirs, other), **tolerance)


def test_threads_do_not_change_a_bit() -> None:
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            params, optimizer, _ = trained("fused", torch.float32)
            found.append(flat(params, optimizer))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        torch.testing.assert_close(found[0], other, rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
@pytest.mark.filterwarnings("ignore:Adafactor. parameter")
def test_adafactor_of_more_axes_is_torchs(engine: str) -> None:
    theirs = needs_torchs("Adafactor")

    def run(cls: Any, **options: Any) -> list[Any]:
        generator = torch.Generator().manual_seed(0)
        shapes = [(2, 3, 4), (4, 1, 3, 3), (6, 5), (7,)]
        params: list[Any] = [torch.randn(s, generator=generator).requires_grad_() for s in shapes]
        optimizer = cls(params, lr=0.05, weight_decay=0.1, **options)
        for step in range(20):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator) * 10.0 ** (step % 5 - 8)
            optimizer.step()
        return params

    ours = run(steprule.Adafactor, engine=engine)
    torch.testing.assert_close(ours, run(theirs), **TOLERANCES[torch.float32])


def test_what_the_kernel_does_not_take_others_do() -> None:
    transposed = torch.randn(4, 6).t().requires_grad_()
    params: list[Any] = [transposed, torch.randn(0, 3, requires_grad=True)]
    params += [torch.randn(2, 3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)]
    optimizer = EveryAxis(params)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    engines = [row.engine for row in optimizer.explain().rows]
    assert engines == ["foreach", "foreach", "foreach", "fused"]
    assert "no matrix in the order of its rows" in optimizer.explain().rows[0].reason
    assert all(bool(torch.isfinite(p).all()) for p in params)


def test_what_makes_no_sense_is_refused() -> None:
    def optimizer_of(function: Any, **slots: Any) -> Any:
        rule = steprule.rule(**slots)(function)
        param = torch.ones(3, 4, requires_grad=True)
        param.grad = torch.ones(3, 4)
        return steprule.make_optimizer(rule, name="Odd", lr=1.0)([param])

    def twice(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * sum_of(sum_of(grad, axis=-1), axis=-1)

    def no_rows(param: Any, grad: Any, row: Any, *, lr: Any) -> Any:
        return param - lr * grad, sum_of(grad, axis=-2)

    def odd_axis(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * sum_of(grad, axis=0)

    def scope(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * sum_of(grad, over="all", axis=-1)

    with pytest.raises(TypeError, match="one number for each row already"):
        optimizer_of(twice).step()
    with pytest.raises(TypeError, match="must return one number for each row for 'row'"):
        optimizer_of(no_rows, row=steprule.Slot(shape="row")).step()
    with pytest.raises(ValueError, match=r"axis must be -1 \(of each row\), -2"):
        optimizer_of(odd_axis).step()
    with pytest.raises(ValueError, match="of all elements together: leave axis out"):
        optimizer_of(scope).step()


def test_explain_tells_the_passes() -> None:
    _, optimizer, _ = trained("fused", torch.float32)
    assert "mean_of of rows" in str(optimizer.explain())
