"""Running a scheduler on a stand-in for its optimizer, so that the real one is not touched."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

import torch
from torch.optim import SGD, Optimizer

from steprule.lr_scheduler import groups

S = TypeVar("S")


def stand_in(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer with the same numbers in its groups and one empty parameter in each."""
    result = SGD([{"params": [torch.empty(0, requires_grad=True)]} for _ in optimizer.param_groups])
    result.defaults = dict(getattr(optimizer, "defaults", {}))
    for group, original in zip(result.param_groups, optimizer.param_groups, strict=True):
        group.update(
            {key: groups.copied(value) for key, value in original.items() if key != "params"}
        )
    return result


def rehearse(scheduler: S) -> S:
    """Return a copy of `scheduler`, its members included, that drives a stand-in.

    The model is not copied: wherever the copy meets the optimizer it finds the stand-in.
    """
    optimizer: Any = scheduler.optimizer  # type: ignore[attr-defined]
    return copy.deepcopy(scheduler, {id(optimizer): stand_in(optimizer)})
