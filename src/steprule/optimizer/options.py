"""Checks of an optimizer's options: kinds, ranges, misspellings."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from steprule.language.rule import RANGES, Range, Rule
from steprule.optimizer.scheduled import check_schedules
from steprule.planning.settings import FLAGS
from steprule.schedules import checks
from steprule.schedules.base import shapes

# How torch words these options in its own messages, which scripts and tests look for.
TORCH_WORDS: Mapping[str, str] = {
    "lr": "learning rate",
    "eps": "epsilon value",
}
# Options that are numbers, or None for none, and what that means.
BOUNDS: Mapping[str, str] = {
    "clip_grad_norm": "a schedule, or None for no clipping",
    "clip_grad_value": "a schedule, or None for no clipping",
    "peak_lr": "or None for a decay of lr * weight_decay",
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
    """Check the numbers of one group, its flags, and the schedules that it came with.

    Args:
        rule: the rule whose ranges hold (None: only the field's standard names are known).
        options: the group.
        where: put before the message, as ``"group 1: "``.

    Raises:
        ValueError: a number out of its range, or a tensor with more than one element.
        TypeError: something that is not a number, or no flag.
    """
    for name in switches_of(rule):
        if name in options:
            check_flag(name, options[name], where)
    check_schedules(options, where)
    for name in BOUNDS:
        _check_bound(name, options.get(name), where)
    ranges = RANGES if rule is None else rule.ranges
    own = set(ranges) - set(RANGES)
    names = set(ranges) if rule is None else {*rule.options, "lr", "weight_decay", *own}
    # Parameters without memory may have options without.
    if not all(getattr(param, "is_meta", True) for param in options.get("params", ())):
        for name in names.union(BOUNDS) & set(options):
            check_has_value(name, options[name], where)
    for name in names & set(options):
        allowed = ranges.get(name, Range())
        value = options[name]
        if value is None and rule is not None and name in rule.optional:
            continue
        if rule is not None and name in rule.parts:
            _check_pair(rule, name, value, allowed, where)
        elif not (rule is None and isinstance(value, (tuple, list))):
            _check_number(name, value, allowed, where, _phrase(name))


def check_kinds(rule: Rule, options: Mapping[str, Any], where: str) -> None:
    """Check that the numbers of a group are numbers, whatever their ranges: before a class's own.

    Raises:
        ValueError, TypeError: as :func:`check_options`.
    """
    for name in {*rule.options} & set(options):
        check_has_value(name, options[name], where)
    check_options(_unbounded(rule), options, where)


@functools.cache
def _unbounded(rule: Rule) -> Rule:
    names = {*rule.options, "lr", "weight_decay"}.union(*rule.parts.values())
    return replace(rule, ranges=dict.fromkeys(names, Range(is_finite=False)))


def check_has_value(name: str, value: Any, where: str) -> None:
    """Refuse a tensor that holds no number."""
    for number in value if isinstance(value, (tuple, list)) else (value,):
        if isinstance(number, torch.Tensor) and number.is_meta:
            raise ValueError(
                f"{where}{name} is a Tensor on meta, which holds no number: pass a number, or a "
                "Tensor made outside torch.device('meta')"
            )


def _check_bound(name: str, bound: Any, where: str) -> None:
    """Check that an option which may be None is a number; which numbers is checked elsewhere."""
    if isinstance(bound, torch.Tensor):
        if bound.numel() != 1:
            raise ValueError(
                f"{where}Tensor {name} must be 1-element, got shape {tuple(bound.shape)}"
            )
        if bound.is_meta:
            return
    if bound is not None and checks.real_number(bound) is None:
        raise TypeError(
            f"{where}{name} must be a number, {BOUNDS[name]}, got {type(bound).__name__} {bound!r}"
        )


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
        value = value.detach()
    number = checks.real_number(value)
    if number is None:
        raise TypeError(
            f"{where}{name} must be a number, got {type(value).__name__} {value!r}"
            f"{_instead(name, value)}"
        )
    if number not in allowed:
        raise ValueError(f"{where}Invalid {phrase}: {value} ({name} must be {allowed})")


def _instead(name: str, value: Any) -> str:
    """Return what to pass by who meant a schedule, and gave its name or a function of the step."""
    if callable(value) or (isinstance(value, str) and value in shapes()):
        return (
            f": a schedule is an object, such as {name}=steprule.schedules.cosine(1e-3, 0, "
            "steps=1000); a function of the step goes to steprule.lr_scheduler.LambdaLR"
        )
    return ""


@functools.cache
def switches_of(rule: Rule | None) -> tuple[str, ...]:
    """Return the options that are on or off: those of every optimizer, and the rule's own."""
    if rule is None:
        return FLAGS
    parameters = inspect.signature(rule.function).parameters
    own = [name for name in rule.flags if parameters[name].annotation in (bool, "bool")]
    return (*(name for name in FLAGS if name not in (*rule.flags, *rule.options)), *own)


def check_flag(name: str, value: Any, where: str) -> None:
    """Check an option that is on or off; None, which torch takes too, leaves it off.

    Raises:
        TypeError: something else, which would be on or off by Python's idea of truth.
    """
    if value is not None and not checks.is_switch(value):
        raise TypeError(
            f"{where}{name} must be True or False, got {type(value).__name__} {value!r}"
        )


def check_spelling(given: Iterable[str], known: Sequence[str], where: str = "") -> None:
    """Refuse a group option that is one of ``known``, misspelled.

    Keys of the user's own (``name``, ``lr_scale``, ``initial_lr``, SAM's ``rho``…) are let through,
    as torch does; only one that must have been meant for a known option is refused.

    Raises:
        ValueError: naming the option that was meant.
        TypeError: a name that is no string.
    """
    names = list(given)
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"{where}the options of a group have names, got the key {name!r}")
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
    """Return ``" (did you mean 'adam'?)"``, or nothing if no known name is close.

    What is the end of a known one (``weight_decay`` of ``cautious_weight_decay``) is no misspelling
    but an option of other optimizers.
    """
    names = list(known)
    synonym = SYNONYMS.get(name.lower().replace("-", "_"))
    if synonym in names:
        return f" (did you mean {synonym!r}?)"
    if "_" in name and any(one.endswith(f"_{name}") for one in names):
        return ""
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
