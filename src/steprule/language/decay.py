"""Weight decay as a shared term: which kind a group has, and the options that say so."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Literal

from steprule.language.rule import Range, Rule

# By ``lr * weight_decay``, or by ``lr / peak_lr * weight_decay``.
Decoupled = Literal["decoupled", "scheduled"]
# L2 adds to the gradient; the others shrink the parameter.
Decay = Literal["none", "l2"] | Decoupled

#: The options that say how a group's parameters decay, and their defaults; where
#: ``decoupled_weight_decay`` is None, or not there, the rule's own holds.
DECAYING: Mapping[str, Any] = {
    "decoupled_weight_decay": False,
    "peak_lr": None,
}
#: The numbers that decide, by being 0 or None, which kind it is.
DECIDING = ("weight_decay", "peak_lr")
#: The numbers that each kind computes with.
NUMBERS: Mapping[Decay, tuple[str, ...]] = {
    "none": (),
    "l2": ("weight_decay",),
    "decoupled": ("lr", "weight_decay"),
    "scheduled": ("lr", "weight_decay", "peak_lr"),
}
PEAK = Range(low=0.0, low_included=False)


def decay_of(rule: Rule, options: Mapping[str, Any]) -> Decay:
    """Return the kind of decay that a group with these options has beside its rule."""
    weight_decay = options.get("weight_decay", 0)
    # A decay of 0 must skip the term: 0 * inf is nan. A tensor may become non-zero later.
    is_on = not isinstance(weight_decay, (int, float)) or weight_decay != 0
    if "weight_decay" in rule.needs or not is_on:
        return "none"
    if not is_decoupled(rule, options):
        return "l2"
    return "decoupled" if options.get("peak_lr") is None else "scheduled"


def has_shared_decay(rule: Rule, options: Collection[str]) -> bool:
    """Tell whether it is this term that decays parameters: not the rule itself, nor nothing."""
    return "weight_decay" not in rule.needs and "weight_decay" in options


def is_decoupled(rule: Rule, options: Mapping[str, Any]) -> bool:
    """Tell whether weight decay shrinks the parameters of a group with these options."""
    asked = options.get("decoupled_weight_decay")
    return rule.decoupled if asked is None else bool(asked)


def shrunk(param: Any, decay: Decay, numbers: Mapping[str, Any]) -> Any:
    """Return a parameter after decoupled decay of either kind."""
    return param * (1 - decay_rate(decay, numbers))


def decay_rate(decay: Decay, numbers: Mapping[str, Any]) -> Any:
    """Return the share of a parameter that decays at a step."""
    rate = numbers["lr"] / numbers["peak_lr"] if decay == "scheduled" else numbers["lr"]
    return rate * numbers["weight_decay"]


def check_decay(name: str, rule: Rule, options: Mapping[str, Any], where: str) -> None:
    """Check the options that say more of decoupled weight decay.

    Args:
        name: the optimizer's.
        rule: its rule.
        options: a group's.
        where: put before the message, as ``"group 1: "``.

    Raises:
        ValueError: an option that says nothing here: the rule has a decay of its own or none, or
            decay is not decoupled; or ``peak_lr`` is not positive.
    """
    peak = options.get("peak_lr")
    if getattr(peak, "is_meta", False):  # there is no number to check
        return
    if peak is not None and float(peak) not in PEAK:
        raise ValueError(f"{where}peak_lr must be {PEAK}, got {peak}")
    for option in ("cautious_weight_decay", "peak_lr"):
        if not options.get(option):
            continue
        _refuse_without_shared_decay(name, rule, options, option, where)
        if not is_decoupled(rule, options):
            raise ValueError(
                f"{where}{option}={options[option]!r} is of decoupled weight decay: set "
                "decoupled_weight_decay=True as well"
            )


def check_kind_of_decay(name: str, rule: Rule, options: Mapping[str, Any], where: str) -> None:
    """Check that ``decoupled_weight_decay`` means something in a group that is made, if it is said.

    In one that is loaded it may be another optimizer's word, whose state is taken.

    Raises:
        ValueError: the rule has a decay of its own or none.
    """
    if is_decoupled(rule, options) != rule.decoupled:
        _refuse_without_shared_decay(name, rule, options, "decoupled_weight_decay", where)


def _refuse_without_shared_decay(
    name: str, rule: Rule, options: Mapping[str, Any], option: str, where: str
) -> None:
    if not has_shared_decay(rule, options):
        has_own = "weight_decay" in rule.needs
        why = "scales its weight decay itself" if has_own else "has no weight decay"
        raise ValueError(
            f"{where}{option}={options[option]!r} says nothing here: {name} {why}; leave it out"
        )
