"""torch.optim.lr_scheduler without its faults: same classes, arguments and numbers.

They drive torch's optimizers and steprule's alike. What differs, and why, is listed in
docs/lr_scheduler.md. Loops in the old order (scheduler first) find theirs in `scheduler_first`;
`from_schedule` makes a scheduler of any schedule.
"""

from __future__ import annotations

from typing import Any

from torch.optim import lr_scheduler as torchs

from steprule.drop_in import pass_for_torchs
from steprule.lr_scheduler import scheduler_first
from steprule.lr_scheduler.base import LRScheduler
from steprule.lr_scheduler.chained import ChainedScheduler
from steprule.lr_scheduler.cosine import CosineAnnealingLR, CosineAnnealingWarmRestarts
from steprule.lr_scheduler.cyclic import CyclicLR
from steprule.lr_scheduler.decay import ExponentialLR, MultiStepLR, PolynomialLR, StepLR
from steprule.lr_scheduler.from_schedule import from_schedule
from steprule.lr_scheduler.lambdas import LambdaLR, MultiplicativeLR
from steprule.lr_scheduler.one_cycle import OneCycleLR
from steprule.lr_scheduler.plateau import ReduceLROnPlateau
from steprule.lr_scheduler.sequential import SequentialLR
from steprule.lr_scheduler.torch_names import EPOCH_DEPRECATION_WARNING as EPOCH_DEPRECATION_WARNING
from steprule.lr_scheduler.torch_names import _enable_get_lr_call as _enable_get_lr_call
from steprule.lr_scheduler.torch_names import _initial_mode as _initial_mode
from steprule.lr_scheduler.torch_names import (
    _warn_get_lr_called_within_step as _warn_get_lr_called_within_step,
)
from steprule.lr_scheduler.torch_names import helper
from steprule.lr_scheduler.warmup import ConstantLR, LinearLR

_LRScheduler = LRScheduler

__all__ = [
    "ChainedScheduler",
    "ConstantLR",
    "CosineAnnealingLR",
    "CosineAnnealingWarmRestarts",
    "CyclicLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "MultiplicativeLR",
    "OneCycleLR",
    "PolynomialLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "from_schedule",
    "scheduler_first",
]

pass_for_torchs((globals()[name] for name in __all__ if name != "scheduler_first"), torchs)


def __getattr__(name: str) -> Any:
    """torch's helpers of its own schedulers, which people import from there."""
    return helper(name, __name__)
