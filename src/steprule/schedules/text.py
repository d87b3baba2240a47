"""Printing calls so that they can be pasted back."""

from __future__ import annotations

import math
from typing import Any


def value_text(value: Any) -> str:
    """`value` as Python source: whole floats without ".0", everything else as `repr` has it."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return repr(value) if value == 0 and math.copysign(1, value) < 0 else repr(int(value))
    return repr(value)


def call_text(name: str, arguments: dict[str, Any], positional: tuple[str, ...]) -> str:
    """Return the call `name(...)`; arguments in `positional` are written without their name."""
    parts = [
        value_text(value) if key in positional else f"{key}={value_text(value)}"
        for key, value in arguments.items()
    ]
    return f"{name}({', '.join(parts)})"
