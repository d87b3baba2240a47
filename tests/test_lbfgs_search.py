"""LBFGS's line searches on the More-Garbow-Hillstrom problems, and where losses are not finite."""

from __future__ import annotations

import importlib.util
import math
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor
from torch.nn import Parameter

from steprule.quasi_newton import LBFGS


def _problems() -> Any:
    """The module of problems, which is no package of the tests' own import mode."""
    path = Path(__file__).parent / "problems" / "more_garbow_hillstrom.py"
    spec = importlib.util.spec_from_file_location("more_garbow_hillstrom", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


problems = _problems()
SEARCHES = ["strong_wolfe", "more_thuente", "backtracking"]


def minimised(
    loss_of: Callable[[Tensor], Tensor], start: Any, **options: Any
) -> tuple[Tensor, LBFGS, list[float]]:
    param = Parameter(torch.tensor(start, dtype=torch.float64))
    defaults = {"max_iter": 2000, "max_eval": 3000, "tolerance_grad": 1e-6, "tolerance_change": 0.0}
    optimizer = LBFGS([param], **{**defaults, **options})
    seen: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(param)
        loss.backward()
        seen.append(float(loss.detach()))
        return loss

    optimizer.step(closure)
    return param.detach(), optimizer, seen


# Its gradient is a difference of numbers of 1e10: float64 does not resolve 1e-6.
UNRESOLVED = {"meyer [10]"}
SOLVABLE = [problem for problem in problems.ALL if problem.name not in UNRESOLVED]


@pytest.mark.parametrize("problem", SOLVABLE, ids=lambda p: p.name)
@pytest.mark.parametrize("line_search_fn", ["more_thuente", "backtracking"])
def test_solves_the_test_set(problem: Any, line_search_fn: str) -> None:
    x, optimizer, seen = minimised(problem.loss, problem.start, line_search_fn=line_search_fn)
    result = optimizer.result()
    assert result.reason == "gradient", result
    assert result.evaluations == len(seen)
    loss = float(problem.loss(x))
    assert any(math.isclose(loss, least, rel_tol=2e-2, abs_tol=1e-6) for least in problem.least)


def evaluations_of_scipy(problem: Any) -> int | None:
    """How many it takes to solve the problem with our history; None if it does not."""

    def value_and_grad(values: Any) -> tuple[float, Any]:
        x = torch.tensor(values, requires_grad=True)
        loss = problem.loss(x)
        loss.backward()
        assert x.grad is not None
        return float(loss.detach()), x.grad.numpy()

    options = {"maxcor": 100, "gtol": 1e-6, "ftol": 0.0, "maxfun": 3000}
    start = np.array(problem.start, dtype=float)
    found = minimize(value_and_grad, start, jac=True, method="L-BFGS-B", options=options)
    return found.nfev if np.abs(found.jac).max() <= 1e-6 else None


def test_takes_no_more_evaluations_than_scipy() -> None:
    """The median of the ratio over the paper's problems; benchmarks/lbfgs_solve.py has them all."""
    ratios = []
    for problem in problems.PAPER:
        expected = evaluations_of_scipy(problem)
        if expected is not None:
            options: dict[str, Any] = {"line_search_fn": "more_thuente"}
            _, optimizer, seen = minimised(problem.loss, problem.start, **options)
            assert optimizer.result().reason == "gradient", problem.name
            ratios.append(len(seen) / expected)
    assert len(ratios) > 30
    assert statistics.median(ratios) <= 1.2


@pytest.mark.parametrize("problem", problems.PAPER, ids=lambda p: p.name)
def test_strong_wolfe_visits_torchs_points(problem: Any) -> None:
    """The first 25, in float64; rounding grows from there on where a problem is chaotic."""
    visited: list[list[Tensor]] = [[], []]
    for cls, points in zip((LBFGS, torch.optim.LBFGS), visited, strict=True):
        param = Parameter(torch.tensor(problem.start, dtype=torch.float64))
        optimizer = cls([param], max_iter=25, max_eval=25, line_search_fn="strong_wolfe")

        def closure(param: Tensor = param, points: list[Tensor] = points) -> Tensor:
            points.append(param.detach().clone())
            param.grad = None
            loss: Tensor = problem.loss(param)
            loss.backward()
            return loss

        optimizer.step(closure)
    for mine, yours in zip(*visited, strict=False):  # ends differ in a trial or two
        torch.testing.assert_close(mine, yours, rtol=1e-6, atol=1e-8)
    assert abs(len(visited[0]) - len(visited[1])) <= 2


@pytest.mark.parametrize("problem", problems.ALL, ids=lambda p: p.name)
@pytest.mark.parametrize("line_search_fn", SEARCHES)
@pytest.mark.parametrize("max_eval", [2, 3, 5, 12])
def test_never_ends_above_its_start(problem: Any, line_search_fn: str, max_eval: int) -> None:
    x, _, seen = minimised(
        problem.loss, problem.start, line_search_fn=line_search_fn, max_eval=max_eval
    )
    assert float(problem.loss(x)) <= seen[0]


@settings(max_examples=60, deadline=None)
@given(
    curvature=st.floats(-3, 3),
    quartic=st.floats(1e-3, 10),
    wiggle=st.floats(0, 5),
    x=st.floats(-5, 5),
    lr=st.sampled_from([1e-6, 1.0, 1e3]),
    line_search_fn=st.sampled_from(SEARCHES),
)
def test_never_ends_above_its_start_on_wiggly_lines(
    curvature: float, quartic: float, wiggle: float, x: float, lr: float, line_search_fn: str
) -> None:
    def loss(p: Tensor) -> Tensor:
        return (curvature * p**2 + quartic * p**4 + wiggle * torch.sin(5 * p)).sum()

    end, optimizer, seen = minimised(loss, [x], max_eval=30, lr=lr, line_search_fn=line_search_fn)
    assert float(loss(end)) <= seen[0]
    assert optimizer.result().loss == float(loss(end))


# -- not finite --------------------------------------------------------------------------------


def beyond_an_edge(p: Tensor) -> Tensor:
    """Nan for p <= 0; fixed steps from 3 go there at once."""
    return (p - torch.log(p) * 0.5).sum()


@pytest.mark.parametrize("line_search_fn", SEARCHES)
def test_a_nan_beyond_an_edge_is_backed_away_from(line_search_fn: str | None) -> None:
    x, optimizer, seen = minimised(
        beyond_an_edge, [3.0, 7.0], lr=10.0, max_iter=60, line_search_fn=line_search_fn
    )
    assert any(math.isnan(loss) for loss in seen)
    assert bool(x.isfinite().all())
    assert float(beyond_an_edge(x)) <= seen[0]
    assert optimizer.result().reason == "gradient"


def test_where_backing_away_fails_the_last_good_point_is_restored_and_it_says_so() -> None:
    start = torch.tensor([1.0])
    param = Parameter(start.clone())
    optimizer = LBFGS([param], max_eval=20)

    def closure() -> Tensor:
        optimizer.zero_grad()
        is_start = bool(torch.equal(param.detach(), start))
        loss = param.sum() * (1.0 if is_start else math.nan)
        loss.backward()
        return loss

    with pytest.warns(RuntimeWarning, match="not_finite"):
        optimizer.step(closure)
    assert torch.equal(param.detach(), start)
    assert optimizer.result().reason == "not_finite"
    assert "last finite point" in optimizer.result().message


def test_a_start_that_is_not_finite_is_left_as_it_is() -> None:
    param = Parameter(torch.tensor([-1.0]))
    optimizer = LBFGS([param], line_search_fn="more_thuente")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.log(param).sum()
        loss.backward()
        return loss

    with pytest.warns(RuntimeWarning, match="not_finite"):
        optimizer.step(closure)
    assert torch.equal(param, torch.tensor([-1.0]))


def test_an_unevaluated_last_step_that_left_the_domain_is_taken_back() -> None:
    """Fixed steps end without a look (as torch's do); the next call looks, and goes back."""
    param = Parameter(torch.tensor([3.0], dtype=torch.float64))
    optimizer = LBFGS([param], lr=40.0, max_iter=1)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = beyond_an_edge(param)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert float(param.detach()) < 0
    for _ in range(4):
        optimizer.param_groups[0].update(max_iter=20, max_eval=40, lr=1.0)
        optimizer.step(closure)
    assert float(param.detach()) == pytest.approx(0.5, abs=1e-3)


def test_an_infinite_gradient_counts_as_not_finite() -> None:
    def loss(p: Tensor) -> Tensor:
        return torch.sqrt(p.clamp(min=0)).sum() + 0.1 * (p**2).sum()  # slope inf at 0

    x, _, seen = minimised(loss, [4.0], lr=30.0, line_search_fn="more_thuente", max_eval=60)
    assert bool(x.isfinite().all())
    assert float(loss(x)) <= seen[0]


# -- curvature ---------------------------------------------------------------------------------


def test_pairs_without_positive_curvature_are_skipped() -> None:
    """On a concave stretch every y's is negative: no pair is kept, and the loss still falls."""
    x, optimizer, seen = minimised(
        lambda p: -(p**2).sum(), [0.1, 0.2], max_iter=5, line_search_fn="backtracking"
    )
    state = next(iter(optimizer.state.values()))
    assert state["old_dirs"] == []
    assert -float((x**2).sum()) < seen[0]


def test_small_scales_still_learn_curvature_with_the_robust_search() -> None:
    """torch drops pairs with y's below 1e-10; a problem scaled by 1e-12 then never learns."""
    _, optimizer, seen = minimised(
        lambda p: 1e-12 * problems.rosenbrock(p),
        [-1.2, 1.0],
        line_search_fn="more_thuente",
        tolerance_grad=1e-17,
    )
    assert optimizer.result().reason == "gradient"
    assert len(seen) < 150


@pytest.mark.parametrize("line_search_fn", SEARCHES)
def test_gradients_whose_square_underflows_are_no_error(line_search_fn: str) -> None:
    param = Parameter(torch.tensor([-1.2, 1.0]))
    optimizer = LBFGS([param], tolerance_grad=0, tolerance_change=0, line_search_fn=line_search_fn)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = 1e-32 * problems.rosenbrock(param)
        loss.backward()
        return loss

    before = float(closure().detach())
    optimizer.step(closure)
    assert optimizer.result().loss <= before
