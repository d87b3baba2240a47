"""Bounds on the variables, by a projected quasi-Newton method.

Variables that lie at a bound and would be pushed through it are held; the direction is built from
the history restricted to the others, and the path is bent into the box: ``P(x + t d)``.

Source: D. P. Bertsekas, "Projected Newton methods for optimization problems with simple
constraints", SIAM Journal on Control and Optimization 20 (1982): the set held, equation (32), and
the step rule, equation (12); restricted to a limited memory as in M. Schmidt, D. Kim, S. Sra,
"Projected Newton-type methods in machine learning" (2012), section 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.line_search import C1
from steprule.quasi_newton.objective import Evaluation, Objective
from steprule.quasi_newton.ranks import Ranks
from steprule.schedules import checks

# A variable this near to its bound counts as being there (Bertsekas' epsilon).
NEAR = 1e-8
# How often the path is shortened before the search has failed.
MOST_TRIALS = 60


def checked_bounds(bounds: Any, where: str = "") -> tuple[float, float] | None:
    """Return a group's bounds as two numbers, infinite where there is none; None for no bounds.

    Raises:
        ValueError: not a pair, or the lower above the upper.
        TypeError: a bound that is neither a number nor None.
    """
    if bounds is None:
        return None
    if not isinstance(bounds, Sequence) or len(bounds) != 2:
        raise ValueError(
            f"{where}bounds must be a pair (lo, hi) of numbers or None, got {bounds!r}"
        )
    numbers = [None if bound is None else checks.real_number(bound) for bound in bounds]
    if any(
        number is None and bound is not None for number, bound in zip(numbers, bounds, strict=True)
    ):
        raise TypeError(f"{where}bounds must be a pair (lo, hi) of numbers or None, got {bounds!r}")
    low = -math.inf if numbers[0] is None else numbers[0]
    high = math.inf if numbers[1] is None else numbers[1]
    if not low <= high:
        raise ValueError(
            f"{where}bounds must have lo <= hi, got {bounds!r}: swap them, or put None for no bound"
        )
    return None if math.isinf(low) and math.isinf(high) else (low, high)


class Box:
    """The set ``low <= x <= high`` of flat vectors."""

    def __init__(self, low: Tensor, high: Tensor, ranks: Ranks) -> None:
        self._low, self._high, self._ranks = low, high, ranks

    @classmethod
    def of(cls, groups: Sequence[Mapping[str, Any]], layout: Layout) -> Box | None:
        """Return the box of these groups' bounds; None if no group has any.

        Raises:
            ValueError: a bounded group with complex parameters.
        """
        pairs = [checked_bounds(group.get("bounds")) for group in groups]
        if all(pair is None for pair in pairs):
            return None
        low = torch.full((layout.size,), -math.inf, dtype=layout.dtype, device=layout.device)
        high = torch.full_like(low, math.inf)
        for k, (pair, part) in enumerate(zip(pairs, layout.group_slices(), strict=True)):
            if pair is None:
                continue
            if any(param.is_complex() for param in layout.groups[k]):
                raise ValueError(
                    f"group {k}: bounds={pair!r} on complex parameters, which have no order: "
                    "bound torch.view_as_real(param) instead"
                )
            low[part], high[part] = pair
        for part in layout.pads:
            low[part], high[part] = -math.inf, math.inf
        return cls(low, high, layout.ranks)

    def project(self, point: Tensor) -> Tensor:
        """Return the nearest point of the box."""
        return torch.clamp(point, self._low, self._high)

    def held(self, point: Tensor, grad: Tensor) -> Tensor:
        """Return a mask of the variables at a bound that the gradient pushes against it."""
        near = NEAR * (1 + point.abs())
        at_low = (point <= self._low + near) & (grad > 0)
        at_high = (point >= self._high - near) & (grad < 0)
        return at_low | at_high

    def gradient_norm(self, point: Tensor, grad: Tensor) -> float:
        """Return the largest entry of ``P(x - g) - x``, which is 0 at a solution."""
        move = self.project(point - grad) - point
        return self._ranks.largest_entry(move)

    def room(self, point: Tensor, direction: Tensor) -> float:
        """Return the largest step that bends nowhere."""
        bound = torch.where(direction > 0, self._high, self._low)
        steps = (bound - point) / direction
        steps = torch.where(direction == 0, math.inf, steps)
        return max(0.0, -self._ranks.largest(-float(steps.min())))

    def search(
        self,
        objective: Objective,
        point: Tensor,
        direction: Tensor,
        start: Evaluation,
        first: float,
    ) -> tuple[Tensor, Evaluation] | None:
        """Find a step along the bent path with a sufficient decrease.

        The condition is ``loss <= loss0 + 1e-4 * g'(x(t) - x)`` for ``x(t) = P(x + t d)``.

        Returns:
            The new point and what was found there; None if there is no lower one.
        """
        step = first
        for _ in range(MOST_TRIALS):
            target = self.project(torch.add(point, direction, alpha=step))
            move = target - point
            slope, has_moved = self._slope(start.grad, move)
            if not objective.left or not has_moved:
                return None
            found = objective.at(target)
            if found.is_finite and slope < 0 and found.loss <= start.loss + C1 * slope:
                return target, found
            step *= self._shrink(start.loss, slope, found)
        return None

    def _slope(self, grad: Tensor, move: Tensor) -> tuple[float, bool]:
        """Return the derivative along a move, and whether it moves anything."""
        own = float(self._ranks.counted(grad).dot(move))
        slopes, moves = self._ranks.agreed([own], [float(move.any())])
        return float(slopes[0]), moves[0] > 0

    @staticmethod
    def _shrink(loss: float, slope: float, found: Evaluation) -> float:
        """Return the factor of the next step: the minimum of a parabola in [0.1, 0.5]."""
        excess = found.loss - loss - slope
        if not found.is_finite or excess <= 0 or slope >= 0:
            return 0.3
        return min(max(-slope / (2 * excess), 0.1), 0.5)
