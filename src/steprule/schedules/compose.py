"""What composing schedules builds. Users write `a.then(b, at=30)`, `a * 0.5` and so on."""

from __future__ import annotations

import dataclasses
import numbers
from typing import Any, ClassVar

import numpy as np

from steprule.schedules import checks
from steprule.schedules.base import Array, Per, Schedule
from steprule.schedules.text import call_text, value_text


@dataclasses.dataclass(frozen=True, repr=False)
class _Composed(Schedule):
    inner: Schedule

    def __post_init__(self) -> None:
        _a_schedule("inner", self.inner)
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        """Check and normalise what this composition adds."""

    @property
    def unit(self) -> int:
        return self.inner.unit

    def __repr__(self) -> str:
        arguments = self._arguments()
        del arguments["inner"]
        inner = f"({self.inner!r})" if isinstance(self.inner, scaled) else repr(self.inner)
        return f"{inner}.{call_text(type(self).__name__, arguments, self._positional)}"


@dataclasses.dataclass(frozen=True, repr=False)
class _Timed(_Composed):
    """A composition with a length, in the inner schedule's unit or in `per`."""

    def _unit_of(self, per: Per | None) -> int:
        if per is not None:
            checks.one_of("per", per, ("step", "epoch"))
        if per == "epoch" and self.inner.unit == 1:
            raise ValueError(
                f'per="epoch" needs a schedule built with per="epoch", got {self.inner!r}'
            )
        return 1 if per == "step" else self.inner.unit


@dataclasses.dataclass(frozen=True, repr=False)
class then(_Timed):
    """`inner` before `at`, then `other` from its own 0."""

    other: Schedule
    at: int
    per: Per | None = None
    _positional = ("other",)

    def _check(self) -> None:
        _a_schedule("other", self.other)
        self._set("at", checks.whole("at", self.at))
        self._unit_of(self.per)

    def _eval(self, step: Array) -> Array:
        at = self.at * self._unit_of(self.per)
        after = self.other._eval(np.maximum(step - at, 0))
        return np.where(step < at, self.inner._eval(step), after)


@dataclasses.dataclass(frozen=True, repr=False)
class _Lasting(_Timed):
    steps: int
    per: Per | None = None
    _positional = ("steps",)
    _least: ClassVar[int] = 0

    def _check(self) -> None:
        self._set("steps", checks.whole("steps", self.steps, low=self._least))
        self._unit_of(self.per)

    @property
    def _length(self) -> int:
        """The length in updates."""
        return self.steps * self._unit_of(self.per)


@dataclasses.dataclass(frozen=True, repr=False)
class warmup(_Lasting):
    """`steps` equal steps from 0 to the inner schedule's first value, then the inner schedule."""

    def _eval(self, step: Array) -> Array:
        length = self._length
        after = self.inner._eval(np.maximum(step - length, 0))
        if not length:
            return after
        # Before the end `after` is the inner schedule's first value.
        return np.where(step < length, after * (step / length), after)


@dataclasses.dataclass(frozen=True, repr=False)
class repeat(_Lasting):
    """The first `steps` steps of the inner schedule, again and again."""

    _least = 1

    def _eval(self, step: Array) -> Array:
        return self.inner._eval(np.mod(step, self._length))


@dataclasses.dataclass(frozen=True, repr=False)
class clip(_Composed):
    """The inner schedule kept between `lo` and `hi`."""

    lo: float | None = None
    hi: float | None = None
    _positional = ("lo", "hi")

    def _check(self) -> None:
        for name in ("lo", "hi"):
            if getattr(self, name) is not None:
                self._set(name, checks.number(name, getattr(self, name)))
        if self.lo is None and self.hi is None:
            raise ValueError("clip needs a bound: pass lo, hi or both")
        if self.lo is not None and self.hi is not None and self.lo > self.hi:
            raise ValueError(f"lo must not be above hi, got lo={self.lo!r} and hi={self.hi!r}")

    def _arguments(self) -> dict[str, Any]:
        bounds = super()._arguments()
        return bounds if self.lo is not None else {"inner": self.inner, "lo": None, "hi": self.hi}

    def _eval(self, step: Array) -> Array:
        low = -np.inf if self.lo is None else self.lo
        high = np.inf if self.hi is None else self.hi
        return np.clip(self.inner._eval(step), low, high)


@dataclasses.dataclass(frozen=True, repr=False)
class scaled(_Composed):
    """The inner schedule times a number or times another schedule."""

    factor: float | Schedule

    def _check(self) -> None:
        if isinstance(self.factor, numbers.Real):
            self._set("factor", checks.number("factor", self.factor))
        elif not isinstance(self.factor, Schedule):
            raise TypeError(f"factor must be a number or a schedule, got {self.factor!r}")

    def __repr__(self) -> str:
        factor = value_text(self.factor)
        return (
            f"{self.inner!r} * ({factor})"
            if isinstance(self.factor, scaled)
            else (f"{self.inner!r} * {factor}")
        )

    def _eval(self, step: Array) -> Array:
        factor = self.factor._eval(step) if isinstance(self.factor, Schedule) else self.factor
        value: Array = self.inner._eval(step) * factor
        return value


def _a_schedule(name: str, value: Any) -> None:
    if not isinstance(value, Schedule):
        raise TypeError(
            f"{name} must be a schedule, got {value!r}: for a fixed value write constant(...)"
        )
