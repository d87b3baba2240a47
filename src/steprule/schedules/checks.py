"""Checks of arguments: every message names the argument, what came and what to pass instead."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable, Sequence
from typing import Any


def number(name: str, value: Any, *, low: float | None = None, above: float | None = None) -> float:
    """Return `value` as a float; refuse what is not a finite real number in its range.

    Args:
        name: the argument's name, for the message.
        value: what the user passed.
        low: smallest value allowed, if any.
        above: largest value not allowed, if any.

    Raises:
        TypeError: `value` is not a real number.
        ValueError: `value` is nan, infinite or out of range.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r}")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{name} must be a finite number, got {value!r}")
    if low is not None and result < low:
        raise ValueError(f"{name} must be at least {low:g}, got {value!r}")
    if above is not None and result <= above:
        raise ValueError(f"{name} must be above {above:g}, got {value!r}")
    return result


def whole(name: str, value: Any, *, low: int = 0) -> int:
    """Return `value` as an int; refuse fractions and numbers below `low`.

    Raises:
        TypeError: `value` is not a number.
        ValueError: `value` has a fraction or is below `low`.
    """
    result = number(name, value)
    if not result.is_integer():
        # Rounded, a share of the run would be 0.
        what = "a count, not a share" if 0 < result < 1 else "round it first"
        raise ValueError(f"{name} must be a whole number, got {value!r}: {what}")
    if result < low:
        raise ValueError(f"{name} must be a whole number of at least {low}, got {value!r}")
    return int(result)


def listed(name: str, value: Any) -> list[Any]:
    """Return `value`, some iterable, as a list.

    Raises:
        TypeError: it is not iterable.
    """
    is_one = isinstance(value, (str, bytes)) or getattr(value, "ndim", 1) == 0
    if not isinstance(value, Iterable) or is_one:
        raise TypeError(f"{name} must be a list, got {value!r}")
    return list(value)


def real_number(value: Any) -> float | None:
    """Return what may be given for a number as one; None for anything else, bools included.

    A number that is too large for a float becomes nan, which is in no range.
    """
    kind = str(getattr(value, "dtype", type(value).__name__))
    if isinstance(value, (str, bytes)) or "bool" in kind or "complex" in kind:
        return None
    if not hasattr(value, "__float__"):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.nan
    except (TypeError, ValueError):  # a class, an array of several numbers
        return None


def is_switch(value: Any) -> bool:
    """Tell whether `value` says on or off: a bool, 0 or 1, or an array or tensor of one such.

    Anything else that has a truth value would do as well, and `"False"` would mean on.
    """
    if getattr(value, "is_meta", False):
        return False
    if hasattr(value, "item") and math.prod(getattr(value, "shape", (2,))) == 1:
        value = value.item()
    return isinstance(value, (bool, int, float)) and value in (0, 1)


def switch(name: str, value: Any) -> bool:
    """Return `value` as a bool; None is False.

    Raises:
        TypeError: it says neither on nor off.
    """
    if value is not None and not is_switch(value):
        raise TypeError(f"{name} must be True or False, got {value!r}")
    return bool(value)


def one_of(name: str, value: Any, choices: Sequence[str]) -> str:
    """Return `value` if it is among `choices`.

    Raises:
        ValueError: it is not; the message lists the choices.
    """
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be {listed}, got {value!r}")
    return value
