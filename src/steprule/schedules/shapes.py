"""Curves from one value to another, and decays that never end."""

from __future__ import annotations

import dataclasses

import numpy as np

from steprule.schedules.anneal import between, cosine_left, progress
from steprule.schedules.base import Array, Shape


@dataclasses.dataclass(frozen=True, repr=False)
class constant(Shape):
    """The same value at every step.

    Args:
        value: the value.
        per, steps_per_epoch: see `Shape`; every schedule takes them.

    Example:
        >>> constant(0.1)(7)
        0.1
    """

    value: float
    _positional = ("value",)

    def _check(self) -> None:
        self._numbers("value")

    def _at(self, step: Array) -> Array:
        return np.full_like(step, self.value)


@dataclasses.dataclass(frozen=True, repr=False)
class _FromTo(Shape):
    start: float
    stop: float
    steps: int
    _positional = ("start", "stop")

    def _check(self) -> None:
        self._numbers("start", "stop")
        self._wholes("steps", low=1)

    def _left(self, step: Array) -> Array:
        """Share of the way still to go, from 1 to 0."""
        return 1 - progress(step, self.steps)

    def _at(self, step: Array) -> Array:
        return between(self.start, self.stop, self._left(step))


@dataclasses.dataclass(frozen=True, repr=False)
class linear(_FromTo):
    """A straight line: start + (stop - start) * step / steps, then stop.

    Args:
        start: value at step 0.
        stop: value from step `steps` on.
        steps: length, in steps or epochs (`per`), at least 1.

    Raises:
        TypeError, ValueError: an argument is not a finite number, or `steps` is below 1.

    Example:
        >>> linear(1, 0, steps=4)([0, 1, 4, 9]).tolist()
        [1.0, 0.75, 0.0, 0.0]
    """


@dataclasses.dataclass(frozen=True, repr=False)
class cosine(_FromTo):
    """Half a cosine: stop + (start - stop) * (1 + cos(pi * step / steps)) / 2, then stop.

    Args: as `linear`.

    Example:
        >>> cosine(1, 0, steps=2)([0, 1, 2, 3]).round(12).tolist()
        [1.0, 0.5, 0.0, 0.0]
    """

    def _left(self, step: Array) -> Array:
        return cosine_left(progress(step, self.steps))


@dataclasses.dataclass(frozen=True, repr=False)
class polynomial(_FromTo):
    """A power of the way left: stop + (start - stop) * (1 - step / steps)**power, then stop.

    Args: as `linear`, and
        power: exponent, above 0; 1 is a straight line.

    Example:
        >>> polynomial(1, 0, steps=4, power=2)([0, 2, 4]).tolist()
        [1.0, 0.25, 0.0]
    """

    power: float = 1.0

    def _check(self) -> None:
        super()._check()
        self._numbers("power", above=0)

    def _left(self, step: Array) -> Array:
        left: Array = super()._left(step) ** self.power
        return left


@dataclasses.dataclass(frozen=True, repr=False)
class exponential(Shape):
    """A constant ratio: start * gamma**step, without end.

    Args:
        start: value at step 0.
        gamma: ratio from one step or epoch to the next, at least 0.

    Example:
        >>> exponential(1, 0.5)([0, 1, 2]).tolist()
        [1.0, 0.5, 0.25]
    """

    start: float
    gamma: float
    _positional = ("start",)

    def _check(self) -> None:
        self._numbers("start")
        self._numbers("gamma", low=0)

    def _at(self, step: Array) -> Array:
        with np.errstate(over="ignore"):
            value: Array = self.start * self.gamma**step
        return value


@dataclasses.dataclass(frozen=True, repr=False)
class step_decay(exponential):
    """A staircase: start * gamma**(step // every), without end.

    Args:
        start: value at step 0.
        gamma: ratio from one stair to the next, at least 0.
        every: length of a stair, in steps or epochs, at least 1.

    Example:
        >>> step_decay(0.5, 0.5, every=10)([0, 9, 10, 20]).tolist()
        [0.5, 0.5, 0.25, 0.125]
    """

    every: int = dataclasses.field()

    def _check(self) -> None:
        super()._check()
        self._wholes("every", low=1)

    def _at(self, step: Array) -> Array:
        return super()._at(np.floor(step / self.every))
