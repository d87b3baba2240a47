"""A property that is computed once, as Python's own from 3.12 on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from functools import cached_property as cached_property
else:

    class cached_property:  # as Python's
        """What a method returns, kept in the object's dict.

        Up to Python 3.11, ``functools.cached_property`` holds a lock meanwhile, one for all objects
        of a class. An interrupt in the wrong moment (Ctrl-C) leaves it held for good, and another
        thread's step would wait for ever.
        """

        def __init__(self, function: Any) -> None:
            self._function, self.__doc__ = function, function.__doc__

        def __set_name__(self, owner: type, name: str) -> None:
            self._name = name

        def __get__(self, instance: Any, owner: type | None = None) -> Any:
            if instance is None:
                return self
            found = self._function(instance)
            return instance.__dict__.setdefault(self._name, found)
