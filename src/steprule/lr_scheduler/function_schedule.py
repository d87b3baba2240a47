"""A schedule around a Python function: it can be looked at, but not written down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from steprule.schedules import Schedule
from steprule.schedules.base import Array


@dataclasses.dataclass(frozen=True, repr=False)
class _FunctionSchedule(Schedule):
    function: Callable[[int], float]
    base: float
    product: bool = False

    def _eval(self, step: Array) -> Array:
        if not self.product:
            return np.array([self.base * self.function(int(number)) for number in step.flat])
        # The same multiplications in the same order as stepping, up to the last step asked for.
        values = [self.base]
        for number in range(1, int(max(step.flat, default=0)) + 1):
            values.append(values[-1] * self.function(number))
        return np.array([values[int(number)] for number in step.flat])

    def __repr__(self) -> str:
        return f"<schedule of {self.function!r}, starting from {self.base!r}>"

    def to_json(self) -> dict[str, Any]:
        raise TypeError(
            f"{self.function!r} cannot be written as JSON: use "
            "from_points(schedule.table(steps)), which holds its values instead"
        )


FunctionSchedule = _FunctionSchedule
