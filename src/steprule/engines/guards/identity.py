"""A guard on identity: a sequence still holds the very objects that it held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

# From so many on, the native loop gains more than its call costs.
_MANY = 50


class IdentityGuard:
    """Holds for the same objects in the same order: a tensor's own ``==`` compares elements."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = tuple(objects)

    def holds(self, objects: Sequence[Any]) -> bool:
        """Tell whether these are the same objects in the same order."""
        if len(objects) != len(self._objects):
            return False
        if len(objects) < _MANY:
            return all(map(is_, objects, self._objects))
        from steprule.engines.native.loops import are_same  # loads the compiler's back end

        return are_same(objects, self._objects)
