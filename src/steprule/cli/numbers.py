"""Numbers as a command line gives them: text in, a checked number or a clear refusal out."""

from __future__ import annotations

import math
from collections.abc import Callable

import typer


def whole_number(minimum: int, maximum: int) -> Callable[[str], int]:
    """Return a parser for whole numbers from `minimum` to `maximum`, both included."""

    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if not minimum <= number <= maximum:
            raise typer.BadParameter(
                f"expected a whole number from {minimum} to {maximum}, got {text!r}"
            )
        return number

    return parse


def positive_number(text: str) -> float:
    """Return `text` as a number above zero, or refuse it."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number > 0):
        raise typer.BadParameter(f"expected a finite number above 0, got {text!r}")
    return number


def learning_rate(text: str) -> float:
    """Return `text` as a learning rate, or raise ValueError: finite, zero or more."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"expected a finite number of 0 or more, got {text!r}")
    return number
