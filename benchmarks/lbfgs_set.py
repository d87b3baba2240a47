"""The More-Garbow-Hillstrom set: evaluations until the gradient is small (for lbfgs_solve.py).

All five methods get the same function in float64, the same start and history, the same limit of
evaluations, and no tolerance but that of the gradient's largest entry. A problem counts as solved
if the gradient is that small where the method left the parameters.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import statistics
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.table import Table
from scipy.optimize import minimize

from steprule.quasi_newton import LBFGS

sys.path.append(str(Path(__file__).parent.parent / "tests" / "problems"))
PROBLEMS = importlib.import_module("more_garbow_hillstrom").ALL

SMALL = 1e-6
MAX_EVAL = 5000
BASE = "SciPy L-BFGS-B"


@dataclass(frozen=True)
class Outcome:
    """Where a method ended, and the evaluations it took."""

    evaluations: int
    loss: float
    gradient_norm: float

    @property
    def is_solved(self) -> bool:
        """Whether the gradient is small."""
        return self.gradient_norm <= SMALL


def value_and_grad(problem: Any, values: Any) -> tuple[float, Any]:
    """The loss and gradient at a point."""
    x = torch.tensor(values, dtype=torch.float64, requires_grad=True)
    loss = problem.loss(x)
    loss.backward()
    return float(loss.detach()), x.grad.numpy()  # type: ignore[union-attr]


def by_scipy(problem: Any, history: int) -> Outcome:
    """SciPy's L-BFGS-B."""
    options = {"maxcor": history, "gtol": SMALL, "ftol": 0.0, "maxfun": MAX_EVAL, "maxiter": 10**6}
    found = minimize(
        lambda x: value_and_grad(problem, x),
        np.array(problem.start),
        jac=True,
        method="L-BFGS-B",
        options=options,
    )
    loss, grad = value_and_grad(problem, found.x)
    return Outcome(found.nfev, loss, float(np.abs(grad).max()))


def by_class(cls: Any, line_search_fn: str) -> Callable[[Any, int], Outcome]:
    """torch's LBFGS, or ours, in one call of ``step``."""

    def run(problem: Any, history: int) -> Outcome:
        param = torch.nn.Parameter(torch.tensor(problem.start, dtype=torch.float64))
        optimizer = cls(
            [param],
            max_iter=10**6,
            max_eval=MAX_EVAL,
            tolerance_grad=SMALL,
            tolerance_change=0.0,
            history_size=history,
            line_search_fn=line_search_fn,
        )
        calls = 0

        def closure() -> torch.Tensor:
            nonlocal calls
            calls += 1
            optimizer.zero_grad()
            loss: torch.Tensor = problem.loss(param)
            loss.backward()
            return loss

        # Where losses are nan torch's search may end in an IndexError of its own: not solved.
        with warnings.catch_warnings(), contextlib.suppress(IndexError):
            warnings.simplefilter("ignore", RuntimeWarning)  # ours says so where it fails
            optimizer.step(closure)
        loss, grad = value_and_grad(problem, param.tolist())
        return Outcome(calls, loss, float(np.abs(grad).max()))

    return run


METHODS: dict[str, Callable[[Any, int], Outcome]] = {
    BASE: by_scipy,
    "torch strong_wolfe": by_class(torch.optim.LBFGS, "strong_wolfe"),
    "more_thuente": by_class(LBFGS, "more_thuente"),
    "strong_wolfe": by_class(LBFGS, "strong_wolfe"),
    "backtracking": by_class(LBFGS, "backtracking"),
}

Outcomes = dict[str, dict[str, Outcome]]


def run_set(history: int) -> Outcomes:
    """The outcome of each method on each problem."""
    return {
        problem.name: {name: run(problem, history) for name, run in METHODS.items()}
        for problem in PROBLEMS
    }


def summary(outcomes: Outcomes) -> dict[str, dict[str, Any]]:
    """For each method: how many it solved, and its evaluations beside SciPy's where both did.

    ``missed`` are the problems torch solved and this method did not.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in METHODS:
        both = [by for by in outcomes.values() if by[name].is_solved and by[BASE].is_solved]
        ratios = [by[name].evaluations / by[BASE].evaluations for by in both]
        found[name] = {
            "solved": sum(by[name].is_solved for by in outcomes.values()),
            "median_ratio": statistics.median(ratios),
            "geometric_mean_ratio": math.exp(statistics.fmean(map(math.log, ratios))),
            "missed": [
                key
                for key, by in outcomes.items()
                if by["torch strong_wolfe"].is_solved and not by[name].is_solved
            ],
        }
    return found


def table(outcomes: Outcomes, history: int) -> Table:
    """Evaluations a problem and method; in brackets the gradient where it is not solved."""
    shown = Table(
        "problem",
        *METHODS,
        title=f"Evaluations to a gradient of {SMALL:g}, float64, history {history}",
    )
    for problem, by in outcomes.items():
        cells = [
            str(one.evaluations)
            if one.is_solved
            else f"[red]{one.evaluations} ({one.gradient_norm:.0e})[/]"
            for one in by.values()
        ]
        shown.add_row(problem, *cells)
    shown.add_section()
    found = summary(outcomes)
    shown.add_row(f"solved of {len(outcomes)}", *(str(of["solved"]) for of in found.values()))
    for key, label in (("median_ratio", "median"), ("geometric_mean_ratio", "geometric mean")):
        shown.add_row(f"{label} of ratio to SciPy", *(f"{of[key]:.2f}" for of in found.values()))
    return shown
