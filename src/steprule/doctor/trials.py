"""A few steps whose results are known: Adam's formula, in float64, beside an engine."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from steprule.optimizer import Optimizer

# More than a chunk of the fused engine, and no multiple of a vector.
ELEMENTS = 10_007
STEPS = 8
LR, BETA1, BETA2, EPS = 0.01, 0.9, 0.999, 1e-8
#: Parameters are at most 1.1 and take 8 steps of 0.01: each step rounds a parameter by at most 6e-8
#: and its change, from state in float32, by some 1e-8.
TOLERANCE = 2e-6


@dataclass(frozen=True)
class Trial:
    """What came of a few steps.

    Attributes:
        engine: which one took them.
        reason: why it was not the one that was asked for.
        error: the largest difference from the formula.
    """

    engine: str
    reason: str
    error: float

    @property
    def is_right(self) -> bool:
        """Whether the numbers are the formula's, within rounding."""
        return self.error <= TOLERANCE  # False for nan as well


def start(device: torch.device) -> torch.nn.Parameter:
    """Return a parameter, the same each time, without a call of a random generator."""
    values = torch.linspace(-1, 1, ELEMENTS, dtype=torch.float64)
    return torch.nn.Parameter(values.float().reshape(-1, 1).to(device))


def gradient(step: int) -> torch.Tensor:
    """Return a step's gradient: of both signs, none of its elements near 0."""
    angles = torch.arange(ELEMENTS, dtype=torch.float64) + step
    return (torch.cos(angles) + 1.5 * torch.sign(torch.sin(0.37 * angles + 0.1))).reshape(-1, 1)


def take_steps(
    optimizer: Optimizer, param: torch.nn.Parameter, first: int, last: int, *, sparse: bool = False
) -> None:
    """Take the steps from ``first`` to ``last``, each with its gradient."""
    for step in range(first, last + 1):
        grad = gradient(step).to(param.device, param.dtype)
        param.grad = grad.to_sparse(1) if sparse else grad
        optimizer.step()


def trial_of(optimizer: Optimizer, param: torch.nn.Parameter, *, sparse: bool = False) -> Trial:
    """Take the steps, and compare with the formula."""
    take_steps(optimizer, param, 1, STEPS, sparse=sparse)
    row = optimizer.explain().rows[0]
    error = (param.detach().cpu().double() - by_formula()).abs().max()
    return Trial(row.engine, row.reason, float(error))


def by_formula() -> torch.Tensor:
    """Return the parameter after the steps: Adam as the paper has it, on float64."""
    param = start(torch.device("cpu")).detach().double()
    exp_avg, exp_avg_sq = torch.zeros_like(param), torch.zeros_like(param)
    for step in range(1, STEPS + 1):
        grad = gradient(step)
        exp_avg = BETA1 * exp_avg + (1 - BETA1) * grad
        exp_avg_sq = BETA2 * exp_avg_sq + (1 - BETA2) * grad**2
        mean, square = exp_avg / (1 - BETA1**step), exp_avg_sq / (1 - BETA2**step)
        param = param - LR * mean / (square.sqrt() + EPS)
    return param
