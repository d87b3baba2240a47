"""Whether a sequence still holds the very objects that it held."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import is_
from typing import Any

# From so many on, the native loop gains more than its call costs.
_MANY = 50


class SameObjects:
    """Remembers objects, and compares by identity: a tensor's own ``==`` compares elements."""

    def __init__(self, objects: Iterable[Any]) -> None:
        self._objects = tuple(objects)

    def are(self, objects: Sequence[Any]) -> bool:
        """Whether these are the same objects in the same order."""
        if len(objects) != len(self._objects):
            return False
        if len(objects) < _MANY:
            return all(map(is_, objects, self._objects))
        from steprule.engines.native.loops import are_same  # loads the compiler's back end

        return are_same(objects, self._objects)
