"""Cached lookups of compiled functions, cleared when someone must hear of each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

_shortcuts: list[Callable[[], None]] = []


def cached_lookup(function: Callable[P, T]) -> Callable[P, T]:
    """Cache what a function made of ``kernel_cache.library_for``, for calls that steps make.

    It is forgotten where ``kernel_cache.keeping`` begins. Libraries themselves are never dropped:
    none is unloaded while it runs.
    """
    cached = functools.cache(function)
    _shortcuts.append(cached.cache_clear)
    return cached  # type: ignore[return-value]  # the arguments are hashable


def clear_cached_lookups() -> None:
    """Let every cached lookup ask again."""
    for forget in _shortcuts:
        forget()
