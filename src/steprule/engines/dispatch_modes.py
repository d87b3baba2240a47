"""Whether somebody watches torch's operations: what reaches memory by address would be missed."""

from __future__ import annotations

from typing import Any

import torch
from torch import overrides
from torch.utils._device import DeviceContext

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_active_modes: Any = overrides._get_current_function_mode_stack


def is_watched() -> bool:
    """Tell whether a dispatch or function mode is active (tracers, flop counters, recorders…).

    ``torch.device`` and ``torch.set_default_device`` are function modes too, but only say where
    new tensors are made.
    """
    if _dispatch_modes():
        return True
    return bool(_function_modes()) and not all(
        isinstance(mode, DeviceContext) for mode in _active_modes()
    )
