"""Guards: options of every optimizer that look at the gradients before a step is taken.

``clip_grad_norm`` and ``clip_grad_value`` bound the gradients that the rule is given;
``on_nonfinite`` says what becomes of a step whose gradients are not all finite.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from steprule.language.rule import Range
from steprule.ops import SCOPES, minimum

REACTIONS = ("propagate", "skip", "raise")

#: Each guard and its default, with which nothing is looked at.
GUARDS: Mapping[str, Any] = {
    "clip_grad_norm": None,
    "clip_grad_norm_over": "all",
    "clip_grad_value": None,
    "on_nonfinite": "propagate",
}
#: Those that are words, not numbers.
WORDS: Mapping[str, tuple[str, ...]] = {
    "clip_grad_norm_over": SCOPES[::-1],
    "on_nonfinite": REACTIONS,
}
# Where inf only measures the norm.
_POSITIVE = Range(low=0, low_included=False, is_finite=False)
#: Those that are numbers, or None for no clipping.
CLIP_RANGES: Mapping[str, Range] = {"clip_grad_norm": _POSITIVE, "clip_grad_value": _POSITIVE}
# Keeps the factor finite where all gradients are 0; torch's number.
_CLIP_EPS = 1e-6


def guards_of(options: Mapping[str, Any], own: Collection[str] = ()) -> dict[str, Any]:
    """Return the guards among a group's options, those that it lacks at their defaults.

    Args:
        options: the group.
        own: options that the rule itself has: one of a guard's name is no guard.
    """
    return {
        name: default if name in own else options.get(name, default)
        for name, default in GUARDS.items()
    }


def check_guards(options: Mapping[str, Any], where: str) -> None:
    """Check guards.

    Args:
        options: as :func:`guards_of` gives them.
        where: put before the message, as ``"group 1: "``.

    Raises:
        ValueError: a bound that is not positive, or a word that is none of those that there are.
        TypeError: a bound that is no number.
    """
    for name, words in WORDS.items():
        word = options[name]
        if word not in words:
            known = ", ".join(map(repr, words))
            raise ValueError(f"{where}{name} must be one of {known}, got {word!r}")
    for name in CLIP_RANGES:
        _check_bound(name, options[name], where)


def _check_bound(name: str, bound: Any, where: str) -> None:
    if bound is None:
        return
    if isinstance(bound, (bool, str)) or not hasattr(bound, "__float__"):
        raise TypeError(
            f"{where}{name} must be a number, a schedule, or None for no clipping, "
            f"got {type(bound).__name__} {bound!r}"
        )
    if getattr(bound, "is_meta", False):  # there is no number to check
        return
    if float(bound) not in CLIP_RANGES[name]:
        raise ValueError(
            f"{where}{name} must be {CLIP_RANGES[name]}, got {bound}: None switches clipping "
            "off, inf only measures the norm"
        )


def clip_factor(bound: Any, norm: Any) -> Any:
    """Return what gradients of this norm are multiplied by so that it is at most ``bound``.

    As ``torch.nn.utils.clip_grad_norm_``: min(1, bound / (norm + 1e-6)); nan of a nan. Of numbers,
    tensors, or the symbols of a recording.
    """
    return minimum(bound / (norm + _CLIP_EPS), 1.0)
