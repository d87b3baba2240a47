"""Did the optimizer step? Known from a step hook, so that `optimizer.step` is left alone."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim import Optimizer

WRONG_ORDER = (
    "Detected call of `lr_scheduler.step()` before `optimizer.step()`. Call the optimizer first: "
    "this order skips the first value of the schedule. If your loop is written for the old order, "
    "import the schedulers from `steprule.lr_scheduler.scheduler_first`, where the first "
    "scheduler.step() opens epoch 0."
)


def _count(optimizer: Optimizer, *_: Any) -> None:
    """Step hook. It holds no reference, so it keeps nothing alive and can be pickled."""
    state: Any = optimizer
    state._opt_called = True  # the name torch's schedulers look for
    # Only when asked: on a GPU the answer makes the host wait, and a counter that moves makes a
    # compiled step compile again.
    if getattr(optimizer, "_counts_steps", False) and not _skipped(optimizer):
        state._steps_taken = steps_taken(optimizer) + 1


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a GradScaler told a fused step to leave the parameters as they were."""
    found_inf = getattr(optimizer, "found_inf", None)
    return bool(getattr(optimizer, "last_step_skipped", False)) or (
        found_inf is not None and bool(found_inf)
    )


def watch(optimizer: Optimizer, *, count: bool) -> None:
    """Note this optimizer's steps from now on; one hook serves all its schedulers.

    Args:
        optimizer: whose steps.
        count: whether to count them as well, for `steps_taken`.
    """
    if _count not in optimizer._optimizer_step_post_hooks.values():
        optimizer.register_step_post_hook(_count)
    if count:
        state: Any = optimizer
        state._counts_steps = True


def steps_taken(optimizer: Optimizer) -> int:
    """Steps counted so far, without those skipped by a GradScaler."""
    return int(getattr(optimizer, "_steps_taken", 0))


def warn_if_never_stepped(optimizer: Optimizer, stacklevel: int) -> None:
    """Warn, when a scheduler's first step comes before any step of its optimizer.

    Silent where it cannot be known: a user's own wrapper stands in for `optimizer.step`, or the
    gradients hold inf or nan, which is what makes a GradScaler skip the step.
    """
    if getattr(optimizer, "_opt_called", False):
        return
    own_step = vars(optimizer).get("step")
    if own_step is not None and not hasattr(own_step, "_wrapped_by_lr_sched"):
        return
    for group in optimizer.param_groups:
        for param in group["params"]:
            if param.grad is not None and not bool(torch.isfinite(_values(param.grad)).all()):
                return
    warnings.warn(WRONG_ORDER, UserWarning, stacklevel=stacklevel + 1)


def _values(grad: torch.Tensor) -> torch.Tensor:
    return grad.coalesce().values() if grad.is_sparse else grad
