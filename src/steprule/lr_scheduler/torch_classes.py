"""torch's scheduler classes by name, as second bases of ours, so that `isinstance` holds.

People's code asks `isinstance(scheduler, torch.optim.lr_scheduler.OneCycleLR)` to decide how to
drive it. A class of ours has torch's of the same name behind our own base, where it is found by
`isinstance` and where none of its methods is reached: ours override them all, which
tests/test_scheduler_names.py checks against the torch installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.optim.lr_scheduler as torch_schedulers
from torch.optim import swa_utils

if TYPE_CHECKING:
    from typing import TypeAlias

    # To a type checker the attributes are those of our classes alone.
    ChainedScheduler: TypeAlias = torch_schedulers.LRScheduler
    ConstantLR: TypeAlias = torch_schedulers.LRScheduler
    CosineAnnealingLR: TypeAlias = torch_schedulers.LRScheduler
    CosineAnnealingWarmRestarts: TypeAlias = torch_schedulers.LRScheduler
    CyclicLR: TypeAlias = torch_schedulers.LRScheduler
    ExponentialLR: TypeAlias = torch_schedulers.LRScheduler
    LambdaLR: TypeAlias = torch_schedulers.LRScheduler
    LinearLR: TypeAlias = torch_schedulers.LRScheduler
    LRScheduler: TypeAlias = torch_schedulers.LRScheduler
    MultiplicativeLR: TypeAlias = torch_schedulers.LRScheduler
    MultiStepLR: TypeAlias = torch_schedulers.LRScheduler
    OneCycleLR: TypeAlias = torch_schedulers.LRScheduler
    PolynomialLR: TypeAlias = torch_schedulers.LRScheduler
    ReduceLROnPlateau: TypeAlias = torch_schedulers.LRScheduler
    SequentialLR: TypeAlias = torch_schedulers.LRScheduler
    StepLR: TypeAlias = torch_schedulers.LRScheduler
    SWALR: TypeAlias = torch_schedulers.LRScheduler
else:

    def __getattr__(name: str) -> type:
        """torch's class, or its base class where this torch has none of that name."""
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "LRScheduler":  # this one is an LRScheduler too
            name = "_LRScheduler"
        home = swa_utils if name == "SWALR" else torch_schedulers
        return getattr(home, name, torch_schedulers.LRScheduler)
