"""The operations that a rule may use: the same on every engine, and as torch has them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import ENGINES

import steprule
from steprule import ops

NAN, INF = math.nan, math.inf
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 1e-12, -1e-12, 1e-3, 30.0, -30.0, 100.0, 0.5]
UNARY: dict[str, Callable[[Any], Any]] = {
    name: getattr(torch, name)
    for name in ("exp", "expm1", "floor", "log", "log1p", "rsqrt", "sign", "sqrt", "tanh")
} | {"sigmoid": torch.sigmoid, "square": torch.square}
# Two ulps for C's functions (one is what glibc promises of most), one more for those composed.
ULPS = 4


def values(dtype: torch.dtype) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    more = [torch.randn(40, generator=generator, dtype=dtype) * 10.0**k for k in (-4, 0, 1)]
    return torch.cat([torch.tensor(SPECIAL, dtype=dtype), *more])


def applied(operation: Callable[..., Any], x: torch.Tensor, engine: str) -> torch.Tensor:
    """What a slot holds after one step of a rule that applies the operation to the gradient."""

    def one_step(param, grad, result, *, lr):  # type: ignore[no-untyped-def]
        return param, operation(grad) + 0.0 * lr

    param = torch.zeros_like(x).requires_grad_()
    param.grad = x
    cls: Any = steprule.make_optimizer(steprule.rule(keeps_denormals=True)(one_step), lr=0.0)
    optimizer = cls([param], engine=engine)
    optimizer.step()
    assert [row.engine for row in optimizer.explain().rows] == [engine]
    return optimizer.state[param]["result"]  # type: ignore[no-any-return]


def assert_close(mine: torch.Tensor, expected: torch.Tensor, case: str = "") -> None:
    eps = ULPS * torch.finfo(mine.dtype).eps
    torch.testing.assert_close(
        mine, expected, rtol=eps, atol=torch.finfo(mine.dtype).tiny, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_array(name: str, engine: str, dtype: torch.dtype) -> None:
    x = values(dtype)
    assert_close(applied(getattr(ops, name), x, engine), UNARY[name](x))


@pytest.mark.parametrize("name", UNARY)
def test_functions_of_a_number(name: str) -> None:
    for x in values(torch.float64).tolist():
        mine = getattr(ops, name)(x)
        assert isinstance(mine, float)
        expected = UNARY[name](torch.tensor(x, dtype=torch.float64))
        assert_close(torch.tensor(mine, dtype=torch.float64), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_function_of_a_number_that_changes_each_step(engine: str) -> None:
    """Its scalar is computed in float64 by each engine."""

    def scaled(param, grad, *, lr, step):  # type: ignore[no-untyped-def]
        return param - lr * ops.tanh(step / 3) * ops.log1p(step) * ops.expm1(-step) * grad

    param = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    cls: Any = steprule.make_optimizer(steprule.rule(scaled), lr=0.5)
    optimizer, expected = cls([param], engine=engine), 0.0
    for step in range(1, 5):
        param.grad = torch.ones(3, dtype=torch.float64)
        optimizer.step()
        expected -= 0.5 * math.tanh(step / 3) * math.log1p(step) * math.expm1(-step)
    assert param.tolist() == pytest.approx([expected] * 3, rel=1e-14)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_powers_of_arrays(engine: str, dtype: torch.dtype) -> None:
    x = values(dtype)
    # A product with 1.0 cannot differ: the exponent is an array, as is the base.
    for power in (lambda g: abs(g) ** (1.0 * g), lambda g: 2.0**g, lambda g: g**3, lambda g: g**-1):
        assert_close(applied(power, x, engine), power(x))


@pytest.mark.parametrize("engine", ENGINES)
def test_clip_keeps_nan_and_takes_arrays(engine: str) -> None:
    x = values(torch.float64)
    assert_close(applied(lambda g: ops.clip(g, -0.5, 2.0), x, engine), x.clamp(-0.5, 2.0))
    clipped = applied(lambda g: ops.clip(g, -abs(g) / 2, 0.25), x, engine)
    assert_close(clipped, x.clamp(-x.abs() / 2, torch.full_like(x, 0.25)))
    assert ops.clip(3.0, 0.0, 1.0) == 1.0


@pytest.mark.parametrize(
    ("function", "ours"),
    [
        (torch.sqrt, "write steprule.ops.sqrt"),
        (torch.tanh, "write steprule.ops.tanh"),
        (lambda x: torch.where(x > 0, x, x), "write steprule.ops.where"),
        (lambda x: torch.clamp(x, 0, 1), "torch.clamp: write steprule.ops.clip"),
        (lambda x: torch.mul(x, 2), r"write \*"),
        (lambda x: torch.cumsum(x, 0), "torch.cumsum: there are all_finite"),
        (lambda x: torch.ones(3) * x, "`mul` got Tensor"),
        (lambda x: x / torch.linalg.vector_norm(x), "write steprule.ops.norm_of"),
        (lambda x: x / x.norm(), "not a tensor's .norm: write steprule.ops.norm_of"),
        (lambda x: x.mul(2), "not a tensor's .mul: write"),
        (lambda x: torch.nn.functional.relu(x), "torch.relu: there are"),
    ],
)
def test_a_torch_function_is_refused_with_the_name_of_ours(function: Any, ours: str) -> None:
    with pytest.raises((TypeError, AttributeError), match=ours):
        applied(function, torch.ones(2), "fused")


def test_betas_of_any_length() -> None:
    """They are taken from the names of the numbers."""

    def two_averages(param, grad, m, n, v, *, lr, beta1, beta2, beta3):  # type: ignore[no-untyped-def]
        m, n, v = (ops.lerp(x, grad, 1 - b) for x, b in ((m, beta1), (n, beta3), (v, beta2)))
        return param - lr * (m + n), m, n, v

    cls: Any = steprule.make_optimizer(steprule.rule(two_averages), lr=0.1, betas=(0.9, 0.99, 0.5))
    param = torch.zeros(2, requires_grad=True)
    optimizer = cls([param])
    param.grad = torch.ones(2)
    optimizer.step()
    assert param.tolist() == pytest.approx([-0.1 * (0.1 + 0.5)] * 2)
    assert optimizer.state[param]["v"].tolist() == pytest.approx([0.01] * 2)
    with pytest.raises(TypeError, match="betas must be 3 numbers"):
        cls([param], betas=(0.9, 0.99))
    with pytest.raises(ValueError, match="beta"):
        cls([param], betas=(0.9, 0.99, 1.5))
