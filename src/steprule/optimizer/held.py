"""The optimizers that an object holds, such as a wrapper of anybody's."""

from __future__ import annotations

from typing import Any

from torch.optim import Optimizer


def held_by(thing: Any) -> list[Optimizer]:
    """Return the optimizers among an object's attributes, and in lists and dicts among these."""
    found: list[Optimizer] = []
    for value in getattr(thing, "__dict__", {}).values():
        if isinstance(value, dict):
            inside: Any = value.values()
        else:
            inside = value if isinstance(value, (list, tuple)) else (value,)
        found += [item for item in inside if isinstance(item, Optimizer)]
    return found
