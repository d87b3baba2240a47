"""Conditions on the number of steps that say the same with less: n | t and t > n, or t = n."""

from __future__ import annotations

from steprule.formulas.node import Node


def follows_from(condition: Node, other: Node) -> bool:
    """Tell whether ``other``, that t >= m, holds wherever ``condition``, that n | t, does.

    Steps are counted from 1, so that n is the first that it divides.
    """
    n, m = _divisor(condition), _compared(other, "ge")
    return n is not None and m is not None and m <= n


def starts_again(both: Node, start: Node) -> tuple[Node, Node] | None:
    """Return t and m if ``both`` is that n | t and t > m, ``start`` that t = m, and n divides m.

    Either of them, then, is that n | t and t >= m.
    """
    if both.name != "and":
        return None
    divides, after = both.operands
    n, m = _divisor(divides), _compared(after, "gt")
    if n is None or m is None or _compared(start, "eq") != m or m % n:
        return None
    return after.operands[0], after.operands[1]


def _divisor(x: Node) -> float | None:
    """Return n if it is the condition n | t."""
    is_of_step = x.name == "divides" and x.operands[1].is_step
    return x.operands[0].number if is_of_step else None


def _compared(x: Node, relation: str) -> float | None:
    """Return what the number of steps is compared with, if it is by this relation."""
    is_of_step = x.name == relation and x.operands[0].is_step
    return x.operands[1].number if is_of_step else None
