"""Schedules given value by value: stairs and points."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from steprule.schedules import checks
from steprule.schedules.base import Array, Shape
from steprule.schedules.text import value_text

Pairs = tuple[tuple[int, float], ...]


def _pairs(name: str, given: Any) -> Pairs:
    """Check (step, value) pairs with rising steps; sort nothing, guess nothing."""
    try:
        listed = [(step, value) for step, value in given]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be pairs (step, value), got {given!r}") from error
    if not listed:
        raise ValueError(f"{name} must hold at least one (step, value), got {given!r}")
    pairs = tuple(
        (checks.whole(f"step in {name}", step), checks.number(f"value at step {step!r}", value))
        for step, value in listed
    )
    for (before, _), (after, _) in itertools.pairwise(pairs):
        if after <= before:
            raise ValueError(f"{name} must have rising steps, got {after} after {before}")
    return pairs


@dataclasses.dataclass(frozen=True, repr=False)
class piecewise(Shape):
    """Stairs given by where they begin: the value of the last key not after the step.

    Args:
        values: mapping from the step (or epoch, `per`) where a value begins to that value; it
            must say what holds at 0.

    Raises:
        ValueError: no value at 0, or steps that are negative or do not rise.

    Example:
        >>> piecewise({0: 0.1, 30: 0.01})([0, 29, 30, 99]).tolist()
        [0.1, 0.1, 0.01, 0.01]
    """

    values: Mapping[int, float] | Iterable[tuple[int, float]]
    _positional = ("values",)

    def _check(self) -> None:
        given = self.values.items() if isinstance(self.values, Mapping) else self.values
        pairs = _pairs("values", given)
        if pairs[0][0] != 0:
            raise ValueError(f"values must say what holds at step 0, got {dict(pairs)!r}")
        self._set("values", pairs)

    def _at(self, step: Array) -> Array:
        begins, values = np.array(self.values, dtype=np.float64).T
        chosen: Array = values[np.searchsorted(begins, step, side="right") - 1]
        return chosen

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"values": _Stairs(self.values)}  # type: ignore[arg-type]


class _Stairs(tuple[tuple[int, float], ...]):
    """Pairs that print as the mapping the user gave."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "{" + ", ".join(f"{step}: {value_text(value)}" for step, value in self) + "}"


@dataclasses.dataclass(frozen=True, repr=False)
class from_points(Shape):
    """Straight lines between points; the first value before them, the last value after.

    Args:
        points: pairs (step, value) with rising steps (or epochs, `per`).

    Example:
        >>> from_points([(0, 0.0), (10, 1.0), (30, 0.5)])([0, 5, 20, 99]).tolist()
        [0.0, 0.5, 0.75, 0.5]
    """

    points: Iterable[tuple[int, float]]
    _positional = ("points",)

    def _check(self) -> None:
        self._set("points", _pairs("points", self.points))

    def _at(self, step: Array) -> Array:
        begins, values = np.array(self.points, dtype=np.float64).T
        value: Array = np.interp(step, begins, values)
        return value

    def _arguments(self) -> dict[str, Any]:
        return super()._arguments() | {"points": _Points(self.points)}


class _Points(tuple[tuple[int, float], ...]):
    """Pairs that print as the list the user gave."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "[" + ", ".join(f"({step}, {value_text(value)})" for step, value in self) + "]"
