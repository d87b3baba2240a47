"""Options that are counts: numbers of steps, lengths of sides."""

from __future__ import annotations

from typing import Any


def check_count(name: str, value: Any, where: str, least: int = 0) -> None:
    """Check that an option is an integer of at least so much.

    Raises:
        TypeError: it is no integer.
        ValueError: it is less.
    """
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{where}{name} must be an integer >= {least}, got {value!r}")
    if value < least:
        raise ValueError(f"{where}{name} must be an integer >= {least}, got {value!r}")
