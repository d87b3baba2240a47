"""The schedulers for loops in the order torch had before 1.1: scheduler first.

    from steprule.lr_scheduler import scheduler_first as lr_scheduler

    scheduler = lr_scheduler.StepLR(optimizer, step_size=30, gamma=0.1)
    for epoch in range(100):
        scheduler.step()        # the first call opens epoch 0
        train(epoch)            # with the lr of this epoch

The first `step()` gives the value for epoch 0, each lr is set by its closed form from the group's
initial lr (so a second scheduler on the same optimizer starts afresh), and the order of calls is
not warned about. All else is as in `steprule.lr_scheduler`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from steprule.lr_scheduler import cosine, cyclic, decay, lambdas
from steprule.lr_scheduler.plateau import ReduceLROnPlateau
from steprule.lr_scheduler.pure import PureLR


class SchedulerFirst(PureLR):
    """Mixin: stand before the first epoch when built, and step by the closed form."""

    if not TYPE_CHECKING:  # which is to see the arguments of the class behind it

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._set(self._closed(self.last_epoch))
            self.last_epoch -= 1

    def _may_step(self, stacklevel: int) -> bool:
        return True

    def _update_lr(self, epoch: int | None = None) -> None:
        super()._update_lr(self.last_epoch + 1 if epoch is None else epoch)


class LambdaLR(SchedulerFirst, lambdas.LambdaLR):
    """`LambdaLR` for loops that step the scheduler first."""


class StepLR(SchedulerFirst, decay.StepLR):
    """`StepLR` for loops that step the scheduler first."""


class MultiStepLR(SchedulerFirst, decay.MultiStepLR):
    """`MultiStepLR` for loops that step the scheduler first."""


class ExponentialLR(SchedulerFirst, decay.ExponentialLR):
    """`ExponentialLR` for loops that step the scheduler first."""


class CosineAnnealingLR(SchedulerFirst, cosine.CosineAnnealingLR):
    """`CosineAnnealingLR` for loops that step the scheduler first."""


class CyclicLR(SchedulerFirst, cyclic.CyclicLR):
    """`CyclicLR` for loops that step the scheduler first."""


__all__ = [
    "CosineAnnealingLR",
    "CyclicLR",
    "ExponentialLR",
    "LambdaLR",
    "MultiStepLR",
    "ReduceLROnPlateau",
    "StepLR",
]
