"""How long runs go on: epochs, steps or seconds, and when they are looked at on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from steprule.cli.errors import CommandError

POINTS = 20


@dataclass(frozen=True)
class Budget:
    """What every run may take; one of the three is given.

    Attributes:
        epochs: passes over the data.
        steps: updates.
        seconds: of forward, backward and step(); loading data, evaluating and the first step,
            which compiles, do not count.
    """

    epochs: int | None = None
    steps: int | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, epochs: int | None, steps: int | None, seconds: float | None) -> Budget | None:
        """Return what the options say; None when they say nothing.

        Raises:
            CommandError: they say more than one thing.
        """
        values = {"--epochs": epochs, "--steps": steps, "--seconds": seconds}
        given = [option for option, value in values.items() if value is not None]
        if len(given) > 1:
            raise CommandError(f"{' and '.join(given)}: give one of them, a run ends only once")
        return cls(epochs, steps, seconds) if given else None

    def __str__(self) -> str:
        if self.seconds is not None:
            return f"{self.seconds:g} seconds"
        count, unit = (self.steps, "step") if self.steps is not None else (self.epochs, "epoch")
        return f"{count} {unit}{'s' if count != 1 else ''}"

    def words(self) -> list[str]:
        """Return the option that asks for this budget."""
        if self.seconds is not None:
            return ["--seconds", repr(self.seconds)]
        if self.steps is not None:
            return ["--steps", str(self.steps)]
        return ["--epochs", str(self.epochs)]

    def pace(self, batches: Iterable[Any], is_evaluated: bool) -> Pace:
        """Return when runs on these batches end and are looked at.

        Args:
            batches: of an epoch.
            is_evaluated: whether looking costs something: then it is done once an epoch, where
                the budget is in epochs.
        """
        steps = self.steps
        points = POINTS
        if self.epochs is not None:
            length = _length(batches)
            steps = None if length is None else self.epochs * length
            points = self.epochs
            if steps is not None and not is_evaluated:
                points = max(points, min(POINTS, steps))
        return Pace(steps, self.seconds, self.epochs, points)


@dataclass(frozen=True)
class Pace:
    """How far a run has come.

    Attributes:
        steps: at which it ends, where that is known.
        seconds: at which it ends, if it goes by them.
        epochs: at which it ends, where neither of those is known.
        points: how often it is looked at, at equal distances.
    """

    steps: int | None
    seconds: float | None
    epochs: int | None
    points: int

    def passed(self, steps: int, seconds: float, epochs: int) -> int:
        """Return how many of the points have been reached."""
        if self.steps is not None:
            return min(steps * self.points // self.steps, self.points)
        if self.seconds is not None:
            return min(int(seconds * self.points / self.seconds), self.points)
        return min(epochs * self.points // (self.epochs or 1), self.points)

    def share(self, steps: int, seconds: float, epochs: int) -> float:
        """Return how much of the run is done, from 0 to 1."""
        if self.steps is not None:
            return min(steps / self.steps, 1.0)
        if self.seconds is not None:
            return min(seconds / self.seconds, 1.0)
        return min(epochs / (self.epochs or 1), 1.0)


def _length(batches: Iterable[Any]) -> int | None:
    try:
        return len(batches) or None  # type: ignore[arg-type]
    except TypeError:  # a DataLoader over a stream has a __len__ that says so
        return None
