"""Setting the learning rate by hand."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import cast

import torch
from torch import Tensor

from steprule.optimizer.base import Number, Optimizer
from steprule.optimizer.options import check_options
from steprule.optimizer.scheduled import replace_schedule, steps_seen
from steprule.schedules import Schedule


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: Number | Iterable[Number]) -> None:
    """Set the learning rate of every group, from the next step on.

    A number ends the schedule that a group's learning rate had. A schedule takes the place of
    one, and goes on at the step the optimizer's schedules have reached.

    Args:
        optimizer: any optimizer, torch's included.
        lr: one value for all groups, or one for each; a schedule needs an optimizer of steprule.

    Raises:
        ValueError: not as many values as groups, or a value below 0; nothing is changed.
        TypeError: not a number, or a schedule for an optimizer of torch; nothing is changed.
    """
    if not isinstance(getattr(optimizer, "param_groups", None), list):
        raise TypeError(f"set_learning_rate() needs an optimizer, got {optimizer!r}")
    groups = optimizer.param_groups
    is_one = isinstance(lr, (Tensor, str, bytes, Mapping)) or getattr(lr, "ndim", 1) == 0
    several = isinstance(lr, Iterable) and not is_one
    rates = list(cast("Iterable[Number]", lr)) if several else [lr] * len(groups)
    if len(rates) != len(groups):
        raise ValueError(
            f"got {len(rates)} learning rates for {len(groups)} parameter groups: give lr one for "
            "all, or as many as there are groups"
        )
    step = steps_seen(groups)
    numbers = [rate(step) if isinstance(rate, Schedule) else rate for rate in rates]
    for i, (rate, number) in enumerate(zip(rates, numbers, strict=True)):
        if isinstance(rate, Schedule) and not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"group {i}: {type(optimizer).__name__} of torch cannot follow {rate!r}: use "
                "steprule's, or a scheduler"
            )
        if isinstance(number, (tuple, list)):
            raise TypeError(f"group {i}: lr must be a number, got {number!r}")
        check_options(None, {"lr": number, "params": groups[i]["params"]}, f"group {i}: ")
    for group, rate, number in zip(groups, rates, numbers, strict=True):
        replace_schedule(group, "lr", rate if isinstance(rate, Schedule) else None, step)
        held = group["lr"]
        is_own = sum(held is other["lr"] for other in groups) == 1
        if isinstance(held, Tensor) and is_own and not isinstance(number, Tensor):
            held.detach().fill_(float(cast(float, number)))  # a captured graph reads this one
        else:
            group["lr"] = number
