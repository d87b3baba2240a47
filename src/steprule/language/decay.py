"""Weight decay as a shared term: which kind a group has, and the options that say so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from steprule.language.rule import Range, Rule

# L2 adds to the gradient; the others shrink the parameter, by ``lr * weight_decay`` or by
# ``lr / peak_lr * weight_decay``.
Decay = Literal["none", "l2", "decoupled", "scheduled"]

#: The options that say how a group's parameters decay, and their defaults. What ``None`` says of
#: ``decoupled_weight_decay`` is the rule's own.
DECAYING: Mapping[str, Any] = {
    "decoupled_weight_decay": False,
    "cautious_weight_decay": False,
    "peak_lr": None,
}
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


def is_decoupled(rule: Rule, options: Mapping[str, Any]) -> bool:
    """Tell whether weight decay shrinks the parameters of a group with these options."""
    return bool(options.get("decoupled_weight_decay", rule.decoupled))


def shrunk(param: Any, decay: Decay, numbers: Mapping[str, Any]) -> Any:
    """Return a parameter after decoupled decay of either kind."""
    return param * (1 - decay_rate(decay, numbers))


def decay_rate(decay: Decay, numbers: Mapping[str, Any]) -> Any:
    """Return the share of a parameter that decays at a step."""
    rate = numbers["lr"] / numbers["peak_lr"] if decay == "scheduled" else numbers["lr"]
    return rate * numbers["weight_decay"]


def check_decay(name: str, rule: Rule, options: Mapping[str, Any], where: str) -> None:
    """Check the options that say how parameters decay.

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
    asked = [option for option in ("cautious_weight_decay", "peak_lr") if options.get(option)]
    is_changed = is_decoupled(rule, options) != rule.decoupled
    if "weight_decay" in rule.needs or "weight_decay" not in options:
        for option in [*asked, *(["decoupled_weight_decay"] if is_changed else [])]:
            why = (
                "scales its weight decay itself"
                if "weight_decay" in rule.needs
                else "has no weight decay"
            )
            raise ValueError(
                f"{where}{option}={options[option]!r} says nothing here: {name} {why}; leave it out"
            )
    if asked and not is_decoupled(rule, options):
        raise ValueError(
            f"{where}{asked[0]}={options[asked[0]]!r} is of decoupled weight decay: set "
            "decoupled_weight_decay=True as well"
        )
