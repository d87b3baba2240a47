"""LBFGS with bounds: solutions in the box, against SciPy's L-BFGS-B."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import Parameter

from steprule.quasi_newton import LBFGS


def coupled(x: Tensor) -> Tensor:
    """A quadratic whose minimum lies outside of [0, 1] in most coordinates."""
    n = len(x)
    centre = torch.linspace(-2, 3, n, dtype=x.dtype)
    gap = x[1:] - x[:-1]
    return ((x - centre) ** 2).sum() + 10 * (gap**2).sum()


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def bounded_minimum(loss: Any, start: list[float], bounds: Any) -> float:
    def both(values: Any) -> tuple[float, Any]:
        x = torch.tensor(values, requires_grad=True)
        value = loss(x)
        value.backward()
        assert x.grad is not None
        return float(value.detach()), x.grad.numpy()

    options = {"ftol": 0, "gtol": 1e-9, "maxiter": 5000}
    found = minimize(
        both, np.array(start), jac=True, method="L-BFGS-B", bounds=[bounds] * len(start),
        options=options,
    )  # fmt: skip
    return float(found.fun)


@pytest.mark.parametrize("line_search_fn", ["more_thuente", "strong_wolfe", "backtracking"])
@pytest.mark.parametrize("loss", [coupled, rosenbrock])
@pytest.mark.parametrize("bounds", [(0, 1), (None, 0.5), (-0.5, None), (0.25, 0.25)])
def test_finds_scipys_minimum(line_search_fn: str, loss: Any, bounds: Any) -> None:
    start = [0.3] * 12
    param = Parameter(torch.tensor(start, dtype=torch.float64))
    optimizer = LBFGS(
        [param],
        max_iter=500,
        max_eval=1500,
        tolerance_change=0.0,
        bounds=bounds,
        line_search_fn=line_search_fn,
    )
    outside: list[bool] = []
    low = -math.inf if bounds[0] is None else bounds[0]
    high = math.inf if bounds[1] is None else bounds[1]

    def closure() -> Tensor:
        optimizer.zero_grad()
        outside.append(bool(((param < low) | (param > high)).any()))
        value: Tensor = loss(param)
        value.backward()
        return value

    optimizer.step(closure)
    assert not any(outside)
    assert optimizer.result().gradient_norm < 1e-5
    expected = bounded_minimum(loss, start, bounds)
    assert optimizer.result().loss == pytest.approx(expected, rel=1e-8, abs=1e-9)


def test_groups_have_bounds_of_their_own_and_lrs() -> None:
    a, b = Parameter(torch.full((3,), 5.0)), Parameter(torch.full((3,), 5.0))
    optimizer = LBFGS(
        [{"params": [a], "bounds": (1, None)}, {"params": [b], "lr": 0.5}],
        max_iter=60,
        line_search_fn="more_thuente",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (a**2).sum() + (b**2).sum() + (a * b).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(a.detach(), torch.ones(3))
    torch.testing.assert_close(b.detach(), torch.full((3,), -0.5), atol=1e-4, rtol=0)


def test_fixed_steps_are_projected() -> None:
    param = Parameter(torch.tensor([0.5, 0.5]))
    optimizer = LBFGS([param], max_iter=30, bounds=(0, 1))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((param - torch.tensor([2.0, 0.25])) ** 2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(param.detach(), torch.tensor([1.0, 0.25]))
    assert optimizer.result().converged


def test_a_start_outside_the_box_is_brought_in() -> None:
    param = Parameter(torch.tensor([9.0]))
    optimizer = LBFGS([param], bounds=(0, 1), line_search_fn="backtracking")
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        seen.append(float(param.detach()))
        loss = (param**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert seen[0] == 1.0
    assert float(param.detach()) == pytest.approx(0.0, abs=1e-6)


def test_complex_parameters_have_no_order() -> None:
    param = Parameter(torch.zeros(2, dtype=torch.complex64))
    optimizer = LBFGS([param], bounds=(0, 1))
    with pytest.raises(ValueError, match="view_as_real"):
        optimizer.step(lambda: torch.tensor(0.0))
