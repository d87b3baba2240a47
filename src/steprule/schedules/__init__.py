"""Schedules: immutable, pure functions of the step, to be given wherever a number is expected.

    >>> from steprule.schedules import cosine
    >>> lr = cosine(3e-4, 0, steps=10_000).warmup(500)
    >>> lr(0), lr(500), lr(10_500)
    (0.0, 0.0003, 0.0)

Importing this package needs numpy and nothing else.
"""

from __future__ import annotations

from steprule.schedules.base import Schedule, Shape
from steprule.schedules.base import shapes as _shapes
from steprule.schedules.compose import clip, repeat, scaled, then, warmup
from steprule.schedules.cycles import cosine_restarts, cyclic, one_cycle
from steprule.schedules.misplaced import tell_of_methods
from steprule.schedules.parse import ParseError, parse
from steprule.schedules.pieces import from_points, piecewise
from steprule.schedules.shapes import (
    constant,
    cosine,
    exponential,
    linear,
    polynomial,
    step_decay,
)
from steprule.schedules.table import Table
from steprule.schedules.warmed import inverse_sqrt, wsd

# What composing builds stays out of __all__: it is written as methods of a schedule.
_composed = (clip, repeat, scaled, then, warmup)
# Here, since a dataclass gets its __init__ after its base class has seen it.
for _kind in _shapes().values():
    tell_of_methods(_kind)

__all__ = [
    "ParseError",
    "Schedule",
    "Shape",
    "Table",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "exponential",
    "from_points",
    "inverse_sqrt",
    "linear",
    "one_cycle",
    "parse",
    "piecewise",
    "polynomial",
    "step_decay",
    "wsd",
]
