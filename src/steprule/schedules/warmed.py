"""Schedules that bring their own warm-up: inverse square root and warm-up, stable, decay."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from steprule.schedules.base import Array, Per, Shape


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class inverse_sqrt(Shape):
    """Linear warm-up, then decay by the root: peak * min(step / warmup, sqrt(warmup / step)).

    Args:
        peak: highest value, reached at step `warmup`.
        warmup: length of the rise from 0, in steps or epochs (`per`), at least 1.
        per, steps_per_epoch: see `Shape`.

    Source: Vaswani et al., Attention Is All You Need, 2017, equation 3, with `peak` in place of
    the model's width.

    Example:
        >>> inverse_sqrt(1, warmup=4)([0, 2, 4, 16]).tolist()
        [0.0, 0.5, 1.0, 0.5]
    """

    peak: float
    rise: int  # `warmup` to the user; but that is a method of every schedule
    _positional = ("peak",)
    _argument_of: ClassVar = {"rise": "warmup"}

    def __init__(
        self, peak: float, warmup: int, *, per: Per = "step", steps_per_epoch: int | None = None
    ) -> None:
        self._fill(peak=peak, rise=warmup, per=per, steps_per_epoch=steps_per_epoch)

    def _check(self) -> None:
        self._numbers("peak")
        self._wholes("rise", low=1)

    def _at(self, step: Array) -> Array:
        rising = step / self.rise
        value: Array = self.peak * np.minimum(rising, np.sqrt(self.rise / np.maximum(step, 1)))
        return value


@dataclasses.dataclass(frozen=True, repr=False, init=False)
class wsd(Shape):
    """Warm-up, stable, decay: 0 to `peak`, hold, then a straight line to `end`, which stays.

    Args:
        peak: the value held.
        warmup: length of the rise from 0, in steps or epochs (`per`).
        stable: how long `peak` is held.
        decay: length of the way from `peak` to `end`.
        end: last value, default 0.
        per, steps_per_epoch: see `Shape`.

    Source: Hu et al., MiniCPM, 2024, section 4.

    Example:
        >>> wsd(1, warmup=2, stable=2, decay=2)([0, 1, 2, 4, 5, 6]).tolist()
        [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    peak: float
    rise: int
    stable: int
    decay: int
    end: float = 0.0
    _positional = ("peak",)
    _argument_of: ClassVar = {"rise": "warmup"}

    def __init__(
        self,
        peak: float,
        warmup: int,
        stable: int,
        decay: int,
        end: float = 0.0,
        *,
        per: Per = "step",
        steps_per_epoch: int | None = None,
    ) -> None:
        self._fill(
            peak=peak,
            rise=warmup,
            stable=stable,
            decay=decay,
            end=end,
            per=per,
            steps_per_epoch=steps_per_epoch,
        )

    def _check(self) -> None:
        self._numbers("peak", "end")
        self._wholes("rise", "stable", "decay")

    def _at(self, step: Array) -> Array:
        turns = np.array([0, self.rise, self.rise + self.stable], dtype=np.float64)
        values = np.array([0.0, self.peak, self.peak])
        last = turns[-1] + self.decay
        # np.interp takes the later of two points at one step, so empty phases need no branch.
        value: Array = np.interp(step, np.append(turns, last), np.append(values, self.end))
        return value
