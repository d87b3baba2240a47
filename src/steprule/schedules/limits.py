"""How large a schedule in a file or in text may be: what reads it is not to be kept busy for ever.

Text and checkpoints come from anywhere. Whatever is within these limits is read, printed and
evaluated without meeting Python's own limit of recursion.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

# Schedules in schedules; a call of a method is two levels of a syntax tree.
DEEPEST = 50
# Numbers, lists and schedules: a schedule with a value of its own for each of many steps.
MOST = 200_000
# Characters of JSON.
LONGEST_JSON = 10_000_000


def check_size(data: Any) -> None:
    """Refuse data, or their JSON, that are too deep or too many to be a schedule.

    Raises:
        ValueError: they are.
    """
    if isinstance(data, str):
        _check_text(data)
        return
    left, waiting = MOST, [(data, 0)]
    while waiting:
        one, depth = waiting.pop()
        left -= 1
        if left < 0:
            raise ValueError(f"not a schedule: it has more than {MOST} parts")
        if not isinstance(one, (Mapping, list, tuple)):
            continue
        if depth > 2 * DEEPEST:
            raise ValueError(f"not a schedule: nested more than {DEEPEST} deep")
        if len(one) > left:
            raise ValueError(f"not a schedule: it has more than {MOST} parts")
        parts = one.values() if isinstance(one, Mapping) else one
        waiting += [(part, depth + 1) for part in parts]


def _check_text(text: str) -> None:
    if len(text) > LONGEST_JSON:
        raise ValueError(f"not a schedule: longer than {LONGEST_JSON} characters")
    depth = 0
    for character in text:
        depth += (character in "[{") - (character in "]}")
        if depth > 4 * DEEPEST:
            raise ValueError(f"not a schedule: nested more than {DEEPEST} deep")


def is_too_deep(tree: ast.AST) -> bool:
    """Tell whether a syntax tree is deeper than a schedule may be."""
    level, depth = [tree], 0
    while level:
        depth += 1
        if depth > 4 * DEEPEST:
            return True
        level = [child for node in level for child in ast.iter_child_nodes(node)]
    return False
