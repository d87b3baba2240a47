"""What every line search shares: the line, a trial on it, and the cubic through two trials."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from steprule.quasi_newton.objective import Evaluation, Objective
from steprule.quasi_newton.ranks import largest_entry

# Armijo's condition, loss <= loss0 + C1 * step * slope0, and the curvature condition,
# abs(slope) <= C2 * abs(slope0), with the constants of J. Nocedal and S. Wright, "Numerical
# Optimization" (2006), section 3.1.
C1 = 1e-4
C2 = 0.9


@dataclass(frozen=True)
class Trial:
    """A point on the line, evaluated.

    Args:
        step: distance from the start, in lengths of the direction.
        slope: derivative of the loss by ``step``.
        evaluation: loss and gradient there.
    """

    step: float
    slope: float
    evaluation: Evaluation

    @property
    def loss(self) -> float:
        """The loss there."""
        return self.evaluation.loss

    @property
    def is_finite(self) -> bool:
        """Whether loss, gradient and slope are numbers."""
        return self.evaluation.is_finite and math.isfinite(self.slope)


class Line:
    """The half-line ``point + step * direction``, and the trials made on it.

    Args:
        objective: evaluates, and counts.
        point: where the line starts.
        direction: where it goes; a descent direction.
        start: the evaluation at ``point``.
        slope: the derivative of the loss along the direction there.
        trials: how many may be made.
        longest: the largest step allowed (to a bound).
    """

    def __init__(
        self,
        objective: Objective,
        point: Tensor,
        direction: Tensor,
        start: Evaluation,
        slope: float,
        trials: float,
        longest: float = math.inf,
    ) -> None:
        self._objective = objective
        self._last = objective.evaluations + trials
        self._point = point
        self._direction = direction
        self.start = Trial(0.0, slope, start)
        self.longest = longest
        self.edge = math.inf  # the smallest step known to give no finite loss
        self._precision = torch.finfo(point.dtype).eps
        # Losses that differ by less may be equal but for rounding.
        self.noise = 4 * self._precision * abs(start.loss)
        # Of this rank's part; the ranks' own go along with the first trial.
        self._own_sizes = (largest_entry(direction), largest_entry(point))
        self._sizes: tuple[float, ...] = self._own_sizes if objective.layout.ranks.is_alone else ()

    @property
    def reach(self) -> float:
        """The largest entry of the direction."""
        return self._agreed_sizes()[0]

    @property
    def resolution(self) -> float:
        """Steps that differ by less give the same point, to the last bit or so."""
        reach, size = self._agreed_sizes()
        return 1e-3 * self._precision * size / reach if reach else 0.0

    @property
    def left(self) -> float:
        """How many evaluations may still be made."""
        return max(0, self._last - self._objective.evaluations)

    def at(self, step: float) -> Trial:
        """Evaluate at this step."""
        point = torch.add(self._point, self._direction, alpha=step)
        unknown = () if self._sizes else self._own_sizes
        evaluation = self._objective.at(point, self._direction, unknown)
        self._sizes = self._sizes or evaluation.largest
        trial = Trial(step, evaluation.slope, evaluation)
        if not trial.is_finite:
            self.edge = min(self.edge, step)
        return trial

    def finite_at(self, step: float, base: Trial) -> Trial | None:
        """Evaluate at this step, or nearer to ``base`` until the loss is finite.

        Returns:
            The first finite trial; None if there was none before evaluations ran out.
        """
        factor = 0.5
        while self.left:
            trial = self.at(step)
            if trial.is_finite:
                return trial
            # Faster each time: a step that is far too long should not cost fifty evaluations.
            step = base.step + factor * (step - base.step)
            factor = max(0.5 * factor, 0.05)
            if step == base.step:
                break
        return None

    def has_descended(self, trial: Trial, c1: float = C1) -> bool:
        """Armijo's condition."""
        return trial.loss <= self.start.loss + c1 * trial.step * self.start.slope

    def rounded(self, number: float) -> float:
        """Return a number as the flat vector's dtype holds it."""
        return torch.tensor(number, dtype=self._point.dtype).item()

    def is_flat(self, trial: Trial, c2: float = C2) -> bool:
        """Return the strong curvature condition."""
        return abs(trial.slope) <= -c2 * self.start.slope

    def _agreed_sizes(self) -> tuple[float, ...]:
        """Return the largest entries of direction and point."""
        if not self._sizes:
            _, largest = self._objective.layout.ranks.agreed([], self._own_sizes)
            self._sizes = tuple(map(float, largest))
        return self._sizes

    def lower(self, one: Trial, other: Trial) -> Trial:
        """Return the trial with the lower loss, the first of equals."""
        return one if one.loss <= other.loss else other


class LineSearch(Protocol):
    """A rule that finds a step.

    It returns the accepted trial, or the best one where it had to give up: ``line.start``
    itself if nothing lower was found. It never returns a trial above the start by more than
    ``line.noise``.
    """

    def __call__(self, line: Line, first: float, tolerance: float) -> Trial:
        """Search ``line`` from the step ``first``; give up below ``tolerance``."""


def cubic_minimum(one: Trial, other: Trial, low: float, high: float) -> float:
    """Return the minimum in [low, high] of the cubic that fits both losses and slopes.

    Source: Nocedal and Wright (2006), equation (3.59). The middle where there is none.
    """
    left, right = (one, other) if one.step <= other.step else (other, one)
    width = right.step - left.step
    if width > 0 and left.is_finite and right.is_finite:
        mean = left.slope + right.slope - 3 * (left.loss - right.loss) / (left.step - right.step)
        square = mean * mean - left.slope * right.slope
        if square >= 0:
            root = math.sqrt(square)
            below = right.slope - left.slope + 2 * root
            if below != 0:
                step = right.step - width * ((right.slope + root - mean) / below)
                return min(max(step, low), high)
    return (low + high) / 2
