"""Schedules that come back: restarts, triangles, and the single cycle."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np

from steprule.schedules import checks
from steprule.schedules.anneal import cosine_left
from steprule.schedules.base import Array, Shape

CYCLE_MODES = ("triangular", "triangular2", "exp_range")


@dataclasses.dataclass(frozen=True, repr=False)
class cosine_restarts(Shape):
    """Half cosines one after another, each falling from its peak towards `stop`, without end.

    Cycle c lasts steps * cycle_mult**c and starts from start * peak_mult**c:
    value = stop + (peak - stop) * (1 + cos(pi * steps_into_cycle / length_of_cycle)) / 2.

    Args:
        start: peak of the first cycle.
        stop: value each cycle falls to (the next step is a new peak).
        steps: length of the first cycle, in steps or epochs (`per`), at least 1.
        cycle_mult: whole ratio of one cycle's length to the one before, at least 1, default 1.
        peak_mult: ratio of one cycle's peak to the one before, above 0, default 1.

    Source: Loshchilov and Hutter, SGDR, 2017, equation 5.

    Example:
        >>> cosine_restarts(1, 0, steps=2, cycle_mult=2)([0, 1, 2, 4, 6]).round(12).tolist()
        [1.0, 0.5, 1.0, 0.5, 1.0]
    """

    start: float
    stop: float
    steps: int
    cycle_mult: int = 1
    peak_mult: float = 1.0
    _positional = ("start", "stop")

    def _check(self) -> None:
        self._numbers("start", "stop")
        self._wholes("steps", "cycle_mult", low=1)
        self._numbers("peak_mult", above=0)

    def _begin(self, cycle: Array) -> Array:
        if self.cycle_mult == 1:
            return self.steps * cycle
        begin: Array = self.steps * (self.cycle_mult**cycle - 1) / (self.cycle_mult - 1)
        return begin

    def _at(self, step: Array) -> Array:
        cycle = np.floor(step / self.steps)
        if self.cycle_mult > 1:
            cycle = np.floor(np.log1p(cycle * (self.cycle_mult - 1)) / np.log(self.cycle_mult))
        # The logarithm may land a hair beside a whole number: settle it on exact cycle starts.
        cycle = cycle - (self._begin(cycle) > step)
        cycle = cycle + (self._begin(cycle + 1) <= step)
        done = (step - self._begin(cycle)) / (self.steps * float(self.cycle_mult) ** cycle)
        peak = self.start * self.peak_mult**cycle
        return np.where(done == 0, peak, self.stop + (peak - self.stop) * cosine_left(done))


@dataclasses.dataclass(frozen=True, repr=False)
class cyclic(Shape):
    """A triangle wave: up from `low` to `high`, down again, and so on.

    value = low + (high - low) * height * scale, where height goes 0, 1, 0 over a cycle and scale
    is 1 (triangular), 0.5 for each cycle done (triangular2) or gamma**step (exp_range).

    Args:
        low: value where each cycle begins.
        high: value at the top of the first cycle.
        up: length of the rise, in steps or epochs (`per`), at least 1.
        down: length of the fall, at least 1; default: as `up`.
        mode: "triangular" (default), "triangular2" or "exp_range".
        gamma: ratio of "exp_range", at least 0, default 1.

    Source: Smith, Cyclical Learning Rates for Training Neural Networks, 2017.

    Example:
        >>> cyclic(0, 1, up=2)([0, 1, 2, 3, 4, 6]).tolist()
        [0.0, 0.5, 1.0, 0.5, 0.0, 1.0]
    """

    low: float
    high: float
    up: int
    down: int | None = None
    mode: str = "triangular"
    gamma: float = 1.0
    _positional = ("low", "high")

    def _check(self) -> None:
        self._numbers("low", "high")
        self._numbers("gamma", low=0)
        self._wholes("up", low=1)
        if self.down is not None:
            self._wholes("down", low=1)
        checks.one_of("mode", self.mode, CYCLE_MODES)

    def _at(self, step: Array) -> Array:
        down = self.down or self.up
        cycle = np.floor(step / (self.up + down))
        into = step - cycle * (self.up + down)
        height = np.where(into <= self.up, into / self.up, (self.up + down - into) / down)
        value: Array = self.low + (self.high - self.low) * height * self._scale(step, cycle)
        return value

    def _scale(self, step: Array, cycle: Array) -> Array:
        if self.mode == "triangular2":
            return np.exp2(-cycle)
        if self.mode == "exp_range":
            scale: Array = self.gamma**step
            return scale
        return np.ones_like(step)


@dataclasses.dataclass(frozen=True, repr=False)
class one_cycle(Shape):
    """One rise to `peak` and one fall far below the start, over exactly `steps` steps.

    From peak / div_factor at step 0 to peak at step pct_start * steps - 1, then to
    peak / div_factor / final_div_factor at step steps - 1, the last of the run, which stays.

    Args:
        peak: highest value.
        steps: steps (or epochs, `per`) of the whole run, at least 1.
        pct_start: share of them spent rising, 0 to 1, default 0.3.
        div_factor: peak over first value, above 0, default 25.
        final_div_factor: first value over last value, above 0, default 1e4.
        anneal: "cos" (default) or "linear".
        three_phase: fall back to the first value as slowly as it rose, then to the last.

    Source: Smith and Topin, Super-Convergence, 2018.

    Example:
        >>> one_cycle(1, steps=11, pct_start=0.5, div_factor=4, anneal="linear").table([0, 11])
        ((0, 0.25), (11, 2.5e-05))
    """

    peak: float
    steps: int
    pct_start: float = 0.3
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    anneal: str = "cos"
    three_phase: bool = False
    _positional = ("peak",)

    def _check(self) -> None:
        self._numbers("peak")
        self._wholes("steps", low=1)
        self._numbers("pct_start", low=0)
        if self.pct_start > 1:
            raise ValueError(f"pct_start is a share of the steps, 0 to 1, got {self.pct_start!r}")
        self._numbers("div_factor", "final_div_factor", above=0)
        checks.one_of("anneal", self.anneal, ("cos", "linear"))
        self._set("three_phase", checks.switch("three_phase", self.three_phase))

    def _corners(self) -> list[tuple[float, float]]:
        """(step, value) where one phase ends and the next begins."""
        first = self.peak / self.div_factor
        top = self.pct_start * self.steps - 1
        corners = [(0.0, first), (top, self.peak)]
        if self.three_phase:
            corners.append((2 * self.pct_start * self.steps - 2, first))
        return [*corners, (self.steps - 1.0, first / self.final_div_factor)]

    def _at(self, step: Array) -> Array:
        corners = self._corners()
        values = np.full_like(step, corners[-1][1])
        # From the last phase to the first, so that the earliest phase a step fits in wins.
        for (begin, low), (end, high) in reversed(list(itertools.pairwise(corners))):
            done = (step - begin) / (end - begin) if end != begin else np.ones_like(step)
            left = cosine_left(done) if self.anneal == "cos" else 1 - done
            on_the_way = np.where(step == end, high, high + (low - high) * left)
            values = np.where(step <= end, on_the_way, values)
        return values
