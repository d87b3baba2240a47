"""A pytest plugin: whatever is loaded after it finds steprule's classes where torch's stood.

For PyTorch's own test files, see ``script/torch-tests``. With ``STEPRULE_IN_TORCHS_PLACE=0``
nothing is replaced, which tells what fails without us too.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any
from unittest import mock

import torch

import steprule
from steprule import lr_scheduler, swa_utils
from steprule.rules import OPTIMIZERS

# Imported, these forbid to set flags of torch's backends from then on. Lightning sets some.
with mock.patch.object(torch.backends, "disable_global_flags"):
    from torch.testing._internal import common_optimizers


def put(ours: ModuleType, theirs: ModuleType, names: Any) -> None:
    """Let these names of torch's module mean what they mean in ours."""
    for name in names:
        if hasattr(ours, name) and hasattr(theirs, name):
            setattr(theirs, name, getattr(ours, name))


def replace_everything() -> None:
    optimizers = [cls.__name__ for cls in OPTIMIZERS.values()]
    schedulers = [name for name in dir(torch.optim.lr_scheduler) if name.endswith(("LR", "Lr"))]
    schedulers += [*torch.optim.lr_scheduler.__all__, "EPOCH_DEPRECATION_WARNING"]
    for path, module in list(sys.modules.items()):
        if path.startswith("torch.optim.") and not path.endswith((".optimizer", "_scheduler")):
            put(steprule, module, optimizers)
    put(steprule, torch.optim, [*optimizers, "Optimizer"])
    put(steprule, sys.modules["torch.optim.optimizer"], ["Optimizer"])
    put(lr_scheduler, torch.optim.lr_scheduler, schedulers)
    put(swa_utils, torch.optim.swa_utils, torch.optim.swa_utils.__all__)
    put(steprule, common_optimizers, optimizers)
    put(lr_scheduler, common_optimizers, schedulers)
    for info in common_optimizers.optim_db:
        info.optim_cls = getattr(steprule, info.optim_cls.__name__, info.optim_cls)


if os.environ.get("STEPRULE_IN_TORCHS_PLACE", "1") != "0":
    replace_everything()
