"""How a tile's terms are added up: sums in float64, the largest magnitude by its bits.

The bits of magnitudes are in the order of these, nan above all.
"""

from __future__ import annotations

from steprule.language.recording import Operation

_WITHOUT_SIGN = 2**63 - 1


def is_max(reduction: Operation | None) -> bool:
    """Tell whether a reduction is of the largest magnitude, not a sum (as None is)."""
    return reduction is not None and reduction.name == "max_of"


def nothing_yet(reduction: Operation | None, shape: str) -> str:
    """Return what a reduction begins with, for each element of a tile of this shape."""
    return f"tl.full({shape}, 0, tl.{'int64' if is_max(reduction) else 'float64'})"


def as_added(reduction: Operation | None, term: str) -> str:
    """Return a term, a float64, as it is added up."""
    return f"(words.long_bits({term}) & {_WITHOUT_SIGN})" if is_max(reduction) else term


def added(reduction: Operation | None, total: str, term: str) -> str:
    """Return what a total is with one more term."""
    text = as_added(reduction, term)
    return f"tl.maximum({total}, {text})" if is_max(reduction) else f"{total} + {text}"


def as_number(reduction: Operation | None, total: str) -> str:
    """Return a total as a float64."""
    return f"words.double_of({total})" if is_max(reduction) else total


def joined(reduction: Operation | None, total: str, axis: int | None = None) -> str:
    """Return the number that is left of a tile of totals along an axis, or of all of it."""
    kind = "largest" if is_max(reduction) else "total"
    text = f"words.{kind}({total})" if axis is None else f"words.{kind}_along({total}, {axis})"
    return as_number(reduction, text)
