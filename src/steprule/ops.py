"""The operations a rule may use, beside ``+ - * / **``, comparisons and ``abs()``.

A rule calls these on whatever it was given: plain numbers, symbols while it is being
recorded, or the arrays of an engine. Each kind of operand brings its own *vocabulary*
(see :func:`register_vocabulary`); this module knows none of them but plain numbers.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Literal, Protocol

__all__ = [
    "all_finite",
    "clip",
    "dot_of",
    "exp",
    "expm1",
    "floor",
    "lerp",
    "log",
    "log1p",
    "max_of",
    "maximum",
    "mean_of",
    "minimum",
    "norm_of",
    "rsqrt",
    "sigmoid",
    "sign",
    "sqrt",
    "square",
    "sum_of",
    "tanh",
    "where",
]


# Over which elements a sum may be taken.
Over = Literal["param", "group", "all"]
SCOPES = ("param", "group", "all")
# Along which axis of a matrix it may be taken: the last, of each row; or the last but one.
Axis = Literal[-1, -2] | None


class Vocabulary(Protocol):
    """How one kind of operand carries out the named operations."""

    def sqrt(self, x: Any) -> Any: ...
    def exp(self, x: Any) -> Any: ...
    def expm1(self, x: Any) -> Any: ...
    def log(self, x: Any) -> Any: ...
    def log1p(self, x: Any) -> Any: ...
    def tanh(self, x: Any) -> Any: ...
    def floor(self, x: Any) -> Any: ...
    def sign(self, x: Any) -> Any: ...
    def maximum(self, a: Any, b: Any) -> Any: ...
    def minimum(self, a: Any, b: Any) -> Any: ...
    def where(self, condition: Any, a: Any, b: Any) -> Any: ...
    def lerp(self, a: Any, b: Any, weight: Any) -> Any: ...
    def sum_of(self, x: Any, over: Over = "param", axis: Axis = None) -> Any: ...
    def mean_of(self, x: Any, over: Over = "param", axis: Axis = None) -> Any: ...
    def max_of(self, x: Any, over: Over = "param", axis: Axis = None) -> Any: ...
    def norm_of(self, x: Any, over: Over = "param", axis: Axis = None) -> Any: ...
    def dot_of(self, x: Any, y: Any, over: Over = "param", axis: Axis = None) -> Any: ...


# exp of more is more than the largest number in float64.
LARGEST_EXPONENT = math.log(sys.float_info.max)


class NumberVocabulary:
    """Plain numbers, in float64.

    Outside a function's domain the answer is nan, beyond the largest number infinity: as for
    arrays.
    """

    def sqrt(self, x: Any) -> float:
        return math.sqrt(x) if x >= 0 else math.nan

    def exp(self, x: Any) -> float:
        return math.exp(x) if not x > LARGEST_EXPONENT else math.inf

    def expm1(self, x: Any) -> float:
        return math.expm1(x) if not x > LARGEST_EXPONENT else math.inf

    def log(self, x: Any) -> float:
        return math.log(x) if x > 0 else (-math.inf if x == 0 else math.nan)

    def log1p(self, x: Any) -> float:
        return math.log1p(x) if x > -1 else (-math.inf if x == -1 else math.nan)

    def tanh(self, x: Any) -> float:
        return math.tanh(x)

    def floor(self, x: Any) -> float:
        return float(math.floor(x)) if math.isfinite(x) else x

    def sign(self, x: Any) -> float:
        return float((x > 0) - (x < 0))

    def maximum(self, a: Any, b: Any) -> Any:
        return a if a > b or a != a else b

    def minimum(self, a: Any, b: Any) -> Any:
        return a if a < b or a != a else b

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        return a if condition else b

    def lerp(self, a: Any, b: Any, weight: Any) -> Any:
        return a + weight * (b - a)

    def sum_of(self, x: Any, over: Over = "param", axis: Axis = None) -> Any:
        raise TypeError(
            "a sum, mean, norm, dot product or largest value is taken of an array (param, grad, a "
            f"slot, or what is computed from them), not of the number {x!r}"
        )

    mean_of = max_of = norm_of = sum_of

    def dot_of(self, x: Any, y: Any, over: Over = "param", axis: Axis = None) -> Any:
        return self.sum_of(x)


NUMBERS = NumberVocabulary()
_vocabularies: dict[type, Vocabulary] = {}


def register_vocabulary(kind: type, vocabulary: Vocabulary) -> None:
    """Say how operands of type ``kind`` (and of its subclasses) carry out the operations."""
    _vocabularies[kind] = vocabulary


def _vocabulary_of(*operands: Any) -> Vocabulary:
    for operand in operands:
        for kind in type(operand).__mro__:
            if kind in _vocabularies:
                return _vocabularies[kind]
    return NUMBERS


def sqrt(x: Any) -> Any:
    """Square root; nan below zero."""
    return _vocabulary_of(x).sqrt(x)


def exp(x: Any) -> Any:
    """e to the power ``x``."""
    return _vocabulary_of(x).exp(x)


def expm1(x: Any) -> Any:
    """e to the power ``x``, less 1: exact to rounding near 0, too."""
    return _vocabulary_of(x).expm1(x)


def log(x: Any) -> Any:
    """Natural logarithm."""
    return _vocabulary_of(x).log(x)


def log1p(x: Any) -> Any:
    """Natural logarithm of 1 + ``x``: exact to rounding near 0, too."""
    return _vocabulary_of(x).log1p(x)


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return _vocabulary_of(x).tanh(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return (1 + exp(-x)) ** -1


def square(x: Any) -> Any:
    """``x`` times itself."""
    return x * x


def rsqrt(x: Any) -> Any:
    """1 / sqrt(x), infinite at 0."""
    root = sqrt(x)
    return math.copysign(math.inf, root) if isinstance(root, float) and root == 0 else root**-1


def floor(x: Any) -> Any:
    """Return the largest integer that is not above ``x``."""
    return _vocabulary_of(x).floor(x)


def sign(x: Any) -> Any:
    """-1, 0 or 1; 0 for nan, as in torch."""
    return _vocabulary_of(x).sign(x)


def maximum(a: Any, b: Any) -> Any:
    """Return the larger of the two; nan if either is nan."""
    return _vocabulary_of(a, b).maximum(a, b)


def minimum(a: Any, b: Any) -> Any:
    """Return the smaller of the two; nan if either is nan."""
    return _vocabulary_of(a, b).minimum(a, b)


def clip(x: Any, low: Any, high: Any) -> Any:
    """Return ``x``, but no less than ``low`` and no more than ``high``; nan stays nan."""
    return minimum(maximum(x, low), high)


def where(condition: Any, a: Any, b: Any) -> Any:
    """Return ``a`` where ``condition`` holds, else ``b``: a rule's ``if`` on values."""
    return _vocabulary_of(condition, a, b).where(condition, a, b)


def lerp(a: Any, b: Any, weight: Any) -> Any:
    """Return ``a`` moved by the fraction ``weight`` towards ``b``: a + weight (b - a)."""
    return _vocabulary_of(a, b, weight).lerp(a, b, weight)


def sum_of(x: Any, over: Over = "param", axis: Axis = None) -> Any:
    """Return the sum of a parameter's elements: a number, in float64; 0 of none.

    Args:
        x: an array.
        over: ``"param"``, the elements of each parameter by itself; ``"group"``, those of all
            parameters of its group that have a gradient; or ``"all"`` of the optimizer's.
        axis: of a matrix, -1 for the sum of each row, -2 for that of each column: a column or a
            row of numbers (the axis is kept, with length 1), which operations on arrays spread
            over the matrix. What has more axes is so many matrices.
    """
    return _vocabulary_of(x).sum_of(x, *_checked(over, axis))


def mean_of(x: Any, over: Over = "param", axis: Axis = None) -> Any:
    """Return the mean of the elements, ``over`` and ``axis`` as in :func:`sum_of`; 0 of none."""
    return _vocabulary_of(x).mean_of(x, *_checked(over, axis))


def max_of(x: Any, over: Over = "param", axis: Axis = None) -> Any:
    """Return the largest absolute value, ``over`` and ``axis`` as in :func:`sum_of`.

    nan if any is, 0 of none.
    """
    return _vocabulary_of(x).max_of(x, *_checked(over, axis))


def norm_of(x: Any, over: Over = "param", axis: Axis = None) -> Any:
    """Return the 2-norm, sqrt(sum_of(x * x)), ``over`` and ``axis`` as in :func:`sum_of`."""
    return _vocabulary_of(x).norm_of(x, *_checked(over, axis))


def dot_of(x: Any, y: Any, over: Over = "param", axis: Axis = None) -> Any:
    """Return the dot product of two arrays, sum_of(x * y), in float64."""
    return _vocabulary_of(x, y).dot_of(x, y, *_checked(over, axis))


def all_finite(x: Any, over: Over = "param") -> Any:
    """Tell whether no element is infinite or nan: a truth value for ``where``."""
    return max_of(x, over) < math.inf


def _checked(over: Any, axis: Any) -> tuple[Any, Any]:
    if over not in SCOPES:
        raise ValueError(f"over must be one of {', '.join(map(repr, SCOPES))}, got {over!r}")
    if axis not in (None, -1, -2):
        raise ValueError(
            f"axis must be -1 (of each row), -2 (of each column) or None, got {axis!r}"
        )
    if axis is not None and over != "param":
        raise ValueError(f"over={over!r} is of all elements together: leave axis out")
    return over, axis
