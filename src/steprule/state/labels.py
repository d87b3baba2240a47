"""How messages name a parameter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def label_of(group: Mapping[str, Any], group_index: int, position: int) -> str:
    """Return a parameter's name in messages: its own, or its group and index."""
    if "param_names" in group:
        return f"{group['param_names'][position]!r}"
    return f"parameter {position} of group {group_index}"
