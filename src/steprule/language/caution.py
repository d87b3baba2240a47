"""A rule whose update, or whose weight decay, is left out where signs disagree."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from steprule.language.decay import NUMBERS, Decoupled, decay_of, decay_rate
from steprule.language.rule import Rule, derived_rule, listed, named_after
from steprule.ops import maximum, mean_of, sign
from steprule.ops import where as chosen

#: The options that make updates and weight decay cautious, and their defaults.
CAUTION: Mapping[str, Any] = {"cautious": False, "cautious_weight_decay": False}
# The least share of elements that an update is divided by; the authors' number.
_LEAST_SHARE = 1e-3


def cautious_rule_of(rule: Rule, options: Mapping[str, Any]) -> Rule:
    """Return the rule that a group with these options takes: itself, or a cautious one."""
    masks_update = bool(options.get("cautious"))
    decay = decay_of(rule, options) if options.get("cautious_weight_decay") else "none"
    masked = None if decay == "none" or decay == "l2" else decay
    if not masks_update and masked is None:
        return rule
    return derived_rule(rule, with_caution, masks_update, masked)


def check_caution(name: str, rule: Rule, options: Mapping[str, Any], where: str) -> None:
    """Check that a rule takes options which mask its step.

    Args:
        name: the optimizer's.
        rule: its rule.
        options: a group's.
        where: put before the message, as ``"group 1: "``.

    Raises:
        ValueError: the rule keeps averages of its parameter.
    """
    for option in CAUTION:
        if options.get(option) and rule.averages_param:
            raise ValueError(
                f"{where}{option}=True would mask what {name} makes of the parameter after its "
                "state has followed it: leave it out"
            )


def with_caution(rule: Rule, masks_update: bool, decay: Decoupled | None) -> Rule:
    """Return the rule with a cautious update, a cautious weight decay, or both.

    A cautious update leaves out elements whose step has not the gradient's sign, and makes up for
    them in the others (Liang et al., "Cautious optimizers", 2024)::

        step = param - rule(param);  mask = step * grad > 0
        param = param - step * mask / max(mean(mask), 0.001)

    A cautious decay is of those elements alone that the step draws towards 0 as well (Chen et al.,
    "Cautious weight decay", 2025)::

        param = param - rate * param * (step * param >= 0)

    Args:
        rule: whose update it is.
        masks_update: whether the update is cautious.
        decay: the kind of weight decay that is cautious, if one is.
    """
    function, numbers = rule.function, NUMBERS[decay] if decay is not None else ()
    own = tuple(name for name in numbers if name not in rule.needs)

    def updated(param: Any, grad: Any, /, *slots: Any, **scalars: Any) -> Any:
        wanted = {name: value for name, value in scalars.items() if name not in own}
        result = function(param, grad, *slots, **wanted)
        new_param, *others = listed(result)
        # Signs, since a product of small numbers may be 0.
        step = param - new_param
        if masks_update:
            mask = chosen(sign(step) * sign(grad) > 0, 1.0, 0.0)
            # A product, so that what is not finite is not hidden.
            new_param = param - step * mask / maximum(mean_of(mask), _LEAST_SHARE)
        if decay is not None:
            rate = decay_rate(decay, scalars)
            new_param = new_param - rate * chosen(sign(step) * sign(param) >= 0, param, 0.0)
        return (new_param, *others)

    return dataclasses.replace(
        rule,
        function=named_after(rule, updated, "cautious"),
        options=tuple(dict.fromkeys((*rule.options, *numbers))),
        needs=(*rule.needs, *own),
    )
