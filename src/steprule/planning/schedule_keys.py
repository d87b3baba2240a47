"""Keys of a group's schedules: an option's name, or ``option[i]`` for an entry of a tuple."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any


def option_of(key: str) -> str:
    """Return the option that a key is of: ``betas`` of ``betas[0]``."""
    return key.partition("[")[0]


def entry_of(key: str) -> int | None:
    """Return which entry of the option it is of; None if it is of the whole."""
    position = key.partition("[")[2]
    return int(position.rstrip("]")) if position else None


def put(options: MutableMapping[str, Any], key: str, value: Any) -> None:
    """Give the option, or the entry of it, another value; a tuple is replaced, not changed."""
    name, entry = option_of(key), entry_of(key)
    if entry is None:
        options[name] = value
    else:
        entries = options[name]
        options[name] = (*entries[:entry], value, *entries[entry + 1 :])
