"""Whether somebody watches torch's operations: what reaches memory by address would be missed."""

from __future__ import annotations

from typing import Any

import torch
from torch import overrides
from torch.utils._device import DeviceContext

_dispatch_modes = torch._C._len_torch_dispatch_stack
_function_modes = torch._C._len_torch_function_stack
_active_modes: Any = overrides._get_current_function_mode_stack
# The innermost transform of torch.func (grad, vmap, jvp...) that is running; None outside of all.
_transform_level = torch._C._functorch.maybe_current_level


def is_watched() -> bool:
    """Tell whether a dispatch or function mode is active (tracers, flop counters, recorders…).

    So is a transform of ``torch.func``, within which tensors stand for others.

    ``torch.device`` and ``torch.set_default_device`` are function modes too, but only say where
    new tensors are made.
    """
    if _dispatch_modes() or _transform_level() is not None:
        return True
    return bool(_function_modes()) and not all(
        isinstance(mode, DeviceContext) for mode in _active_modes()
    )
