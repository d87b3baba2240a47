"""What rules with square matrices of a parameter's sides share: their slots, and when to renew."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from steprule.language.rule import Slot
from steprule.ops import floor


def slots_of_sides(longest: str, reason: str) -> tuple[Slot, Slot, Slot, Slot]:
    """Return the slots of sums, left and right, and of the factors that are made of them.

    Sums start at 0 and factors as the identity, by which a side that comes to have them in the
    course of a run is left alone until its first renewal.

    Args:
        longest: name of the option that says up to which length a side has them.
        reason: why they are kept in full precision.
    """
    left = Slot(shape="left", longest=longest, of_vectors="precondition_1d", full_precision=reason)
    right = replace(left, shape="right")
    return left, right, replace(left, init=1.0), replace(right, init=1.0)


def is_multiple(count: Any, of: int) -> Any:
    """Tell whether a count of steps is a multiple of ``precondition_frequency``.

    Raises:
        ValueError: the frequency is below 1, as a group's value may have become.
    """
    if of < 1:
        raise ValueError(f"precondition_frequency must be an integer >= 1, got {of!r}")
    return floor(count / of) * of >= count
