"""Checks of an optimizer's options: kinds, ranges, misspellings."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from steprule.language.rule import RANGES, Range, Rule

# How torch words these options in its own messages, which scripts and tests look for.
TORCH_WORDS: Mapping[str, str] = {
    "lr": "learning rate",
    "eps": "epsilon value",
}
# What people type who come from papers or other libraries; nothing that could be a key of theirs.
SYNONYMS: Mapping[str, str] = {
    "learning_rate": "lr",
    "learningrate": "lr",
    "epsilon": "eps",
    "wd": "weight_decay",
    "beta1": "betas",
    "beta2": "betas",
    "beta_1": "betas",
    "beta_2": "betas",
}


def check_options(rule: Rule | None, options: Mapping[str, Any], where: str = "") -> None:
    """Check the numbers of one group.

    Args:
        rule: the rule whose ranges hold (None: only the field's standard names are known).
        options: the group.
        where: put before the message, as ``"group 1: "``.

    Raises:
        ValueError: a number out of its range, or a tensor with more than one element.
        TypeError: something that is not a number.
    """
    ranges = RANGES if rule is None else rule.ranges
    names = set(ranges) if rule is None else {*rule.options, "lr", "weight_decay"}
    for name in names & set(options):
        allowed = ranges.get(name, Range())
        value = options[name]
        if rule is not None and name in rule.parts:
            _check_pair(rule, name, value, allowed, where)
        elif not (rule is None and isinstance(value, (tuple, list))):
            _check_number(name, value, allowed, where, _phrase(name))


def _phrase(name: str) -> str:
    return TORCH_WORDS.get(name, f"{name} value")


def _check_pair(rule: Rule, name: str, value: Any, allowed: Range, where: str) -> None:
    parts = rule.parts[name]
    ranges = rule.ranges
    if not isinstance(value, (tuple, list)) or len(value) != len(parts):
        raise TypeError(
            f"{where}{name} must be {len(parts)} numbers ({', '.join(parts)}), got {value!r}"
        )
    kinds = {isinstance(x, torch.Tensor) for x in value}
    if len(kinds) > 1:
        raise ValueError(f"{where}{name} must be either both floats or both Tensors, got {value!r}")
    for i, x in enumerate(value):
        singular = name[:-1] if name.endswith("s") else name
        phrase = f"{singular} parameter at index {i}"
        _check_number(f"{name}[{i}]", x, ranges.get(parts[i], allowed), where, phrase)


def _check_number(name: str, value: Any, allowed: Range, where: str, phrase: str) -> None:
    if isinstance(value, torch.Tensor):
        if value.numel() != 1:
            raise ValueError(
                f"{where}Tensor {name} must be 1-element, got shape {tuple(value.shape)}"
            )
        if value.is_meta:  # there is no number to check
            return
        number = float(value.detach())
    elif isinstance(value, bool) or not hasattr(value, "__float__"):
        raise TypeError(f"{where}{name} must be a number, got {type(value).__name__} {value!r}")
    else:
        number = float(value)
    if number not in allowed:
        raise ValueError(f"{where}Invalid {phrase}: {value} ({name} must be {allowed})")


def check_spelling(given: Iterable[str], known: Sequence[str], where: str = "") -> None:
    """Refuse a group option that is one of ``known``, misspelled.

    Keys of the user's own (``name``, ``lr_scale``, ``initial_lr``, SAM's ``rho``…) are let through,
    as torch does; only one that must have been meant for a known option is refused.

    Raises:
        ValueError: naming the option that was meant.
    """
    names = list(given)
    for name in names:
        meant = None if name in known else _meant(name, known)
        if meant is not None and not (name.lower() in SYNONYMS and meant in names):
            raise ValueError(
                f"{where}unknown option {name!r}: did you mean {meant!r}? "
                f"This optimizer's options are {', '.join(known)}"
            )


def _meant(name: str, known: Sequence[str]) -> str | None:
    """Return the option that an unknown name must have been meant for."""
    plain = name.lower().replace("-", "_").strip("_")
    if SYNONYMS.get(plain) in known:
        return SYNONYMS[plain]
    if plain in known:
        return plain
    short = [k for k in known if len(k) < _LONG]
    swapped = next((k for k in short if sorted(k) == sorted(plain)), None)
    if swapped is not None or plain.rstrip("0123456789") in known:
        return swapped
    is_of_own = any(plain.endswith(f"_{k}") or plain.startswith(f"{k}_") for k in known)
    close = difflib.get_close_matches(
        plain, [k for k in known if len(k) >= _LONG], n=1, cutoff=0.92 if is_of_own else 0.84
    )
    return close[0] if close else None


# Options of fewer letters are like too many other words: only swapped letters tell.
_LONG = 6


def suggestion(name: str, known: Iterable[str]) -> str:
    """Return ``" (did you mean 'adam'?)"``, or nothing if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
