"""Patterns over the names of parameters, and what is said of one that matches nothing."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from steprule.model_groups.kinds import KINDS
from steprule.model_groups.named import NamedParam

_SHOWN = 6


def check_pattern(argument: str, pattern: Any, params: Sequence[NamedParam]) -> None:
    """Refuse a pattern that matches no parameter of the model; frozen ones count.

    Raises:
        TypeError: no text.
        ValueError: naming the argument and the pattern, with names that are near it.
    """
    if not isinstance(pattern, str):
        raise TypeError(f"{argument}: a pattern is text, as 'head.*', got {pattern!r}")
    if pattern in KINDS or any(matches(pattern, one) for one in params):
        return
    for one in params:
        if any(_fits(pattern, name) for name in one.other_names):
            tied = next(name for name in one.other_names if _fits(pattern, name))
            raise ValueError(
                f"{argument}: {pattern!r} matches {tied} alone, which is the same parameter as "
                f"{one.name} (tied weights): parameters go by their first name, write {one.name!r}"
            )
    raise ValueError(f"{argument}: {pattern!r} matches no parameter{_near(pattern, params)}")


def matches(pattern: str, one: NamedParam) -> bool:
    """Tell whether a pattern, or the word for a kind, is of this parameter."""
    kind = KINDS.get(pattern)
    return _fits(pattern, one.name) if kind is None else kind(one)


def _fits(pattern: str, name: str) -> bool:
    is_last = "." not in pattern and fnmatchcase(name.rpartition(".")[2], pattern)
    return is_last or fnmatchcase(name, pattern)


def _near(pattern: str, params: Sequence[NamedParam]) -> str:
    """Return what might have been meant, and some of the names that there are."""
    names = [one.name for one in params]
    # What a pattern could have been: a module and all in it, a name, or the last part of one.
    modules = {name.rsplit(".", depth)[0] for name in names for depth in (1, 2, 3) if "." in name}
    known = dict.fromkeys([f"{module}.*" for module in sorted(modules)] + names)
    for name in names:
        known.setdefault(name.rpartition(".")[2])
    under = [f"{m}.*" for m in sorted(modules, key=len) if pattern.rstrip(".*") == m]
    within = [m for m in sorted(modules, key=len) if _ends_with(m, pattern)]
    elsewhere = [f"{'*.' if '.' in m else ''}{pattern}" for m in within]
    close = [*under, *elsewhere, *difflib.get_close_matches(pattern, known, n=2)]
    unique = [text for text in dict.fromkeys(close) if text != pattern][:2]
    meant = f" (did you mean {' or '.join(map(repr, unique))}?)" if unique else ""
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{meant}: '*' stands for any text. There are {', '.join(names[:_SHOWN])}{rest}"


def _ends_with(module: str, pattern: str) -> bool:
    """Tell whether the module that a pattern begins with is this one, within another."""
    first = pattern.partition(".*")[0]
    return "." in module and module.endswith(f".{first}") and pattern.endswith(".*")
