"""Names in torch.optim.lr_scheduler that people import besides the classes.

Schedulers written for torch use them in `step()` and `get_lr()`, and scripts filter warnings by
them; here they do to our schedulers what torch's do to torch's.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch.optim.lr_scheduler as torch_schedulers
from torch.optim.lr_scheduler import EPOCH_DEPRECATION_WARNING as EPOCH_DEPRECATION_WARNING

# Helpers without a word about schedulers: torch's own, those that this torch has.
HELPERS = (
    "_check_verbose_deprecated_warning",
    "_format_param",
    "_param_groups_val_list",
    "_SchedulePhase",
    "_update_param_group_val",
)


def helper(name: str, module: str) -> Any:
    """Return torch's helper of this name, for the `__getattr__` of a module.

    Raises:
        AttributeError: it is none of them, or this torch does not have it.
    """
    if name not in HELPERS:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    return getattr(torch_schedulers, name)


def _warn_get_lr_called_within_step(lr_scheduler: Any) -> None:
    """Warn when a `get_lr()` that computes the next lr is called to look at the present one."""
    if not lr_scheduler._get_lr_called_within_step:
        warnings.warn(
            "To get the last learning rate computed by the scheduler, please use `get_last_lr()`.",
            UserWarning,
            stacklevel=2,
        )


class _enable_get_lr_call:
    """While it lasts, `get_lr()` computes the next lr instead of giving the present one."""

    def __init__(self, o: Any) -> None:
        self.o = o

    def __enter__(self) -> _enable_get_lr_call:
        self.o._get_lr_called_within_step = True
        return self

    def __exit__(self, *_: object) -> None:
        self.o._get_lr_called_within_step = False


class _initial_mode:
    """While it lasts, the scheduler takes its first value."""

    def __init__(self, o: Any) -> None:
        self.o = o

    def __enter__(self) -> None:
        self.o._is_initial = True

    def __exit__(self, *_: object) -> None:
        self.o._is_initial = False
