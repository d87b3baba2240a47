"""A rule with a running average of the parameter beside it: one more slot, in the same pass."""

from __future__ import annotations

import dataclasses
from typing import Any

from steprule.language.rule import Range, Rule, Slot, listed, named_after

#: The slot that holds the average, and the option that turns it on.
AVERAGE, DECAY = "param_ema", "ema_decay"


def with_average(rule: Rule) -> Rule:
    """Return the rule that also keeps ``ema = ema_decay * ema + (1 - ema_decay) * param``.

    ``param`` is the updated one, before it is rounded to what it is stored in. The average starts
    at the parameter as it is when its state is made.
    """
    function = rule.function

    def updated(param: Any, grad: Any, *slots: Any, ema_decay: Any, **scalars: Any) -> Any:
        result = function(param, grad, *slots[:-1], **scalars)
        new_param, *others = listed(result)
        average = ema_decay * slots[-1] + (1 - ema_decay) * new_param
        return (new_param, *others, average)

    slot = Slot(needs_every_step=True, is_average=True)
    return dataclasses.replace(
        rule,
        function=named_after(rule, updated, "averaged"),
        slots={**rule.slots, AVERAGE: slot},
        options=(*rule.options, DECAY),
        needs=(*rule.needs, DECAY),
        ranges={**rule.ranges, DECAY: Range(0.0, 1.0)},
    )
