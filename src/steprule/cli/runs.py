"""Run: what was seen of one optimizer with one seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field

from steprule.cli.contenders import Contender


@dataclass(frozen=True)
class Point:
    """What was seen when a run was looked at.

    Attributes:
        step: updates done.
        seconds: of training until then, without the first step, which compiles.
        figures: what the problem's `evaluate` said, the one that ranks first; without it, the mean
            loss of the batches since the point before.
    """

    step: int
    seconds: float
    figures: Mapping[str, float]
    is_out_of_turn: bool = False

    @property
    def value(self) -> float:
        """The figure that ranks."""
        return next(iter(self.figures.values()))


@dataclass(eq=False)  # a run is itself, whatever it has seen
class Run:
    """What was seen of one contender with one seed.

    Attributes:
        contender: who trained.
        seed: of weights, batches and whatever else is random.
        points: the looks at it, the first before any step where the problem evaluates.
        rates: the lr of the first parameter group before each step.
        batch_losses: the loss of each batch, before its step.
        train_seconds: of each step with its forward and backward pass.
        step_seconds: of each step(), without the loss where step() evaluates it.
        share: how much of the budget is spent, from 0 to 1.
        state_bytes: of the optimizer's state, at the end.
        engines: which engines updated parameters, as explain() has it; of torch's classes, none.
        plan: explain() as text.
        end: why it ended before its budget did: "diverged", "pruned", what failed, or "".
    """

    contender: Contender
    seed: int = 0
    points: list[Point] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    batch_losses: list[float] = field(default_factory=list)
    train_seconds: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    share: float = 0.0
    state_bytes: int = 0
    engines: tuple[str, ...] = ()
    plan: str = ""
    end: str = ""

    @property
    def label(self) -> str:
        """The contender's name as the user wrote it."""
        return self.contender.label

    @property
    def is_over(self) -> bool:
        """Whether its budget is spent, or there is no going on."""
        return self.share >= 1 or bool(self.end)

    @property
    def failure(self) -> str:
        """What failed, or ""."""
        return "" if self.end in ("diverged", "pruned") else self.end

    @property
    def has_broken_off(self) -> bool:
        """Whether it diverged or failed."""
        is_number = not self.points or math.isfinite(self.points[-1].value)
        return self.end not in ("", "pruned") or not is_number

    @property
    def value(self) -> float:
        """The figure that ranks, at the last point; infinite where the run has broken off."""
        return self.value_at(-1)

    def value_at(self, place: int) -> float:
        """Return the figure that ranks at one of the points; infinite after divergence."""
        if self.end not in ("", "pruned") or not self.points:
            return math.inf
        value = self.points[place].value
        return value if math.isfinite(value) else math.inf

    def drop_half_a_step(self) -> None:
        """Forget what was noted of a step that was stopped before all of it was."""
        noted = (self.train_seconds, self.step_seconds, self.batch_losses, self.rates)
        whole = min(map(len, noted))
        for one in noted:
            del one[whole:]

    @property
    def median_step(self) -> float:
        """Median seconds of a step(), the first one apart: it compiles and allocates."""
        return _median(self.step_seconds)

    @property
    def median_train(self) -> float:
        """Median seconds of a step with its forward and backward pass, the first one apart."""
        return _median(self.train_seconds)

    @property
    def total_step(self) -> float:
        """Seconds in all calls of step(), the first one included."""
        return sum(self.step_seconds)


def _median(seconds: list[float]) -> float:
    return statistics.median(seconds[1:] or seconds or [math.nan])
