"""Arguments that are methods: `cosine(1, 0, 10, warmup=2)` is told of `.warmup(2)`."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from steprule.schedules.base import Schedule

_METHODS = ("warmup", "then", "repeat", "clip")


def tell_of_methods(kind: Any) -> None:
    """Have a shape's constructor name the method that an argument was meant for."""
    build = kind.__init__
    methods = [name for name in _METHODS if name not in inspect.signature(kind).parameters]

    @functools.wraps(build)
    def explained(self: Schedule, *args: Any, **kwargs: Any) -> None:
        for name in methods:
            if name in kwargs:
                raise TypeError(
                    f"{kind.__name__}() got an unexpected keyword argument {name!r}: it is a "
                    f"method, {kind.__name__}(...).{name}({kwargs[name]!r})"
                )
        build(self, *args, **kwargs)

    kind.__init__ = explained
