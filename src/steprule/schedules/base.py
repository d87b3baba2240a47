"""Schedule: an immutable, pure function of the step, and the five ways to compose it."""

from __future__ import annotations

import dataclasses
import json
import numbers
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

import numpy as np
import numpy.typing as npt

from steprule.schedules import checks
from steprule.schedules.limits import check_size
from steprule.schedules.table import Table
from steprule.schedules.text import call_text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from matplotlib.figure import Figure

Array = npt.NDArray[np.float64]
Per = Literal["step", "epoch"]

_kinds: dict[str, type[Schedule]] = {}


@dataclasses.dataclass(frozen=True, repr=False)
class Schedule:
    """A value for each step of training: a pure function with no state to save.

    Steps count updates already done, so the first step is 0. Past its end a schedule holds its
    last value. Schedules compare and hash by value, pickle, copy, and print as the expression
    that builds them.

    Example:
        >>> from steprule.schedules import cosine
        >>> lr = cosine(0.1, 0, steps=90).warmup(10)
        >>> lr
        cosine(0.1, 0, steps=90).warmup(10)
        >>> lr(0), lr(5), lr(10), lr(100), lr(10_000)
        (0.0, 0.05, 0.1, 0.0, 0.0)
    """

    # Arguments printed without their name, and fields that had to be called otherwise than
    # their argument because a method has that name.
    _positional: ClassVar[tuple[str, ...]] = ()
    _argument_of: ClassVar[dict[str, str]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not cls.__name__.startswith("_") and cls.__name__ != "Shape":
            _kinds[cls.__name__] = cls

    @property
    def unit(self) -> int:
        """Updates in one unit of this schedule's numbers: 1, or `steps_per_epoch`."""
        return 1

    def _eval(self, step: Array) -> Array:
        """Return values at an array of non-negative whole update counts."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its values are")

    @overload
    def __call__(self, step: int) -> float: ...
    @overload
    def __call__(self, step: npt.NDArray[Any] | list[int] | range) -> Array: ...
    def __call__(self, step: Any) -> float | Array:
        """Value at `step`, in float64.

        Args:
            step: updates already done (first step 0): an int, or an array of them.

        Returns:
            A float for an int; for an array a float64 array of its shape, equal element by
            element to the single calls.

        Raises:
            ValueError: a step is negative or has a fraction.
            TypeError: `step` is not a number or an array of numbers.
        """
        steps = np.asarray(step)
        if steps.dtype.kind not in "iuf" and steps.size:
            raise TypeError(f"step must be an int or an array of ints, got {step!r}")
        counts = np.atleast_1d(steps).astype(np.float64)
        if not (np.all(counts >= 0) and np.all(counts == np.floor(counts))):
            raise ValueError(f"step must be whole and not negative (the first is 0), got {step!r}")
        # One path for a single step and for an array, so that the two agree to the last bit.
        values = np.asarray(self._eval(counts), dtype=np.float64)
        if steps.ndim == 0 and not isinstance(step, np.ndarray):
            return float(values[0])
        return values.reshape(steps.shape)

    # ---- composition -----------------------------------------------------------------------
    def then(self, other: Schedule, at: int, *, per: Per | None = None) -> Schedule:
        """Follow this schedule before step `at`, from there `other`, which starts at its own 0.

        Args:
            other: what follows; it keeps its own unit.
            at: where it begins, in this schedule's unit, or in `per` if given.
            per: "step" or "epoch"; default this schedule's own.
        """
        return _kinds["then"](self, other, at, per)  # type: ignore[call-arg]

    def warmup(self, steps: int, *, per: Per | None = None) -> Schedule:
        """Rise from 0 to this schedule's first value in `steps` equal steps, then run it from 0.

        The rise is linear in updates even where `steps` counts epochs: otherwise the whole first
        epoch would train with 0.

        Args:
            steps: length of the rise, in this schedule's unit, or in `per` if given.
            per: "step" or "epoch"; default this schedule's own.
        """
        return _kinds["warmup"](self, steps, per)  # type: ignore[call-arg]

    def __mul__(self, factor: float | Schedule) -> Schedule:
        """Multiply this schedule by a number, or by another schedule step by step."""
        if not isinstance(factor, (Schedule, numbers.Real)) or isinstance(factor, bool):
            return NotImplemented
        return _kinds["scaled"](self, factor)  # type: ignore[call-arg]

    __rmul__ = __mul__

    def clip(self, lo: float | None = None, hi: float | None = None) -> Schedule:
        """Keep this schedule between `lo` and `hi` (None: no bound on that side)."""
        return _kinds["clip"](self, lo, hi)  # type: ignore[call-arg]

    def repeat(self, steps: int, *, per: Per | None = None) -> Schedule:
        """Return the first `steps` steps of this schedule, again and again without end.

        Args:
            steps: length of one round, in this schedule's unit, or in `per` if given.
            per: "step" or "epoch"; default this schedule's own.
        """
        return _kinds["repeat"](self, steps, per)  # type: ignore[call-arg]

    # ---- looking at it ---------------------------------------------------------------------
    def table(self, steps: int | Iterable[int]) -> Table:
        """Return rows (step, value) for the first `steps` steps, or for the steps listed.

        Example:
            >>> from steprule.schedules import linear
            >>> print(linear(1, 0, steps=2).table(4))
            step  value
               0  1.0
               1  0.5
               2  0.0
               3  0.0
        """
        is_count = isinstance(steps, numbers.Real)
        chosen = range(checks.whole("steps", steps)) if is_count else checks.listed("steps", steps)
        values = self(np.asarray([checks.whole("steps", step) for step in chosen], dtype=np.int64))
        return Table((int(step), float(value)) for step, value in zip(chosen, values, strict=True))

    if TYPE_CHECKING:  # steprule.plotting, which draws schedulers as well, supplies it

        def plot(self, steps: int) -> Figure: ...

    # ---- writing it down -------------------------------------------------------------------
    def _arguments(self) -> dict[str, Any]:
        """Fields that differ from their defaults or have none, those by keyword only last."""
        fields = sorted(dataclasses.fields(self), key=lambda field: bool(field.kw_only))
        return {
            self._argument_of.get(field.name, field.name): getattr(self, field.name)
            for field in fields
            if field.default is dataclasses.MISSING or getattr(self, field.name) != field.default
        }

    def __repr__(self) -> str:
        return call_text(type(self).__name__, self._arguments(), self._positional)

    def to_json(self) -> dict[str, Any]:
        """Return the schedule as a dict of plain types; `from_json` gives back an equal schedule.

        Python writes floats to JSON with all their digits, so nothing is lost in a file either.
        """
        return {"schedule": type(self).__name__} | {
            name: _to_plain(value) for name, value in self._arguments().items()
        }

    @staticmethod
    def from_json(data: dict[str, Any] | str) -> Schedule:
        """Build the schedule that `to_json` wrote; `data` is its dict, or that dict as text.

        Raises:
            ValueError: not a schedule, an unknown kind, or arguments that do not fit it.
        """
        check_size(data)
        if isinstance(data, str):
            try:
                data = json.loads(data)
            except ValueError as error:
                raise ValueError(f"not a schedule: {data!r} is no JSON ({error})") from None
        if not isinstance(data, dict) or "schedule" not in data:
            raise ValueError(
                f'not a schedule: a dict with the key "schedule" is needed, got {data!r}'
            )
        name = data["schedule"]
        kind = _kinds.get(name) if isinstance(name, str) else None
        if kind is None:
            raise ValueError(f"unknown schedule {name!r}; known: {', '.join(sorted(_kinds))}")
        arguments = {key: _from_plain(value) for key, value in data.items() if key != "schedule"}
        try:
            return kind(**arguments)
        except TypeError as error:
            raise ValueError(f"schedule {name!r} cannot be built from {data!r}: {error}") from error


@dataclasses.dataclass(frozen=True, repr=False)
class Shape(Schedule):
    """A schedule with a formula of its own, counted in steps or in epochs.

    Args:
        per: "step" (default): the numbers count updates. "epoch": they count epochs, and the
            value changes once an epoch.
        steps_per_epoch: updates in one epoch; needed with, and only with, `per="epoch"`.
    """

    per: Per = dataclasses.field(default="step", kw_only=True)
    steps_per_epoch: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        checks.one_of("per", self.per, ("step", "epoch"))
        if self.per == "epoch":
            if self.steps_per_epoch is None:
                raise ValueError(
                    'per="epoch" needs steps_per_epoch, the updates in one epoch: len(loader)'
                )
            self._wholes("steps_per_epoch", low=1)
        elif self.steps_per_epoch is not None:
            raise ValueError(
                f'steps_per_epoch={self.steps_per_epoch!r} has no meaning with per="step": '
                'pass per="epoch", or leave it out'
            )
        self._check()

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _fill(self, **fields: Any) -> None:
        """Set the fields and check them, for shapes that write their own __init__."""
        for name, value in fields.items():
            self._set(name, value)
        self.__post_init__()

    def _numbers(self, *names: str, **limits: Any) -> None:
        for name in names:
            argument = self._argument_of.get(name, name)
            self._set(name, checks.number(argument, getattr(self, name), **limits))

    def _wholes(self, *names: str, low: int = 0) -> None:
        for name in names:
            argument = self._argument_of.get(name, name)
            self._set(name, checks.whole(argument, getattr(self, name), low=low))

    def _check(self) -> None:
        """Check and normalise the arguments of this shape."""

    @property
    def unit(self) -> int:
        return self.steps_per_epoch or 1

    def _eval(self, step: Array) -> Array:
        return self._at(np.floor(step / self.unit) if self.unit > 1 else step)

    def _at(self, step: Array) -> Array:
        """Return the formula, at an array of whole counts in this shape's unit."""
        raise NotImplementedError


def _to_plain(value: Any) -> Any:
    if isinstance(value, Schedule):
        return value.to_json()
    if isinstance(value, tuple):
        return [_to_plain(item) for item in value]
    return value


def _from_plain(value: Any) -> Any:
    if isinstance(value, dict):
        return Schedule.from_json(value)
    if isinstance(value, list):
        return tuple(_from_plain(item) for item in value)
    return value


def shapes() -> dict[str, type[Schedule]]:
    """Return the schedules that are written as calls (not as methods of another), by name."""
    return {name: kind for name, kind in _kinds.items() if issubclass(kind, Shape)}
