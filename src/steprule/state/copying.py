"""Copies of state: loaded tensors share memory with nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.placing import placed


def own_copy(value: Any, copies: dict[int, Tensor] | None = None) -> Any:
    """Return a value whose tensors share no memory with its own, wherever in it they are.

    Args:
        value: the value. A tensor that stands in it several times is one in the copy, too.
        copies: those that were made, by the identity of the original.
    """
    copies = {} if copies is None else copies
    if isinstance(value, Tensor):
        if id(value) not in copies:
            copies[id(value)] = value.detach().clone()
        return copies[id(value)]
    if isinstance(value, dict):
        # A dict of another class knows more of itself (a Counter, a model's state with versions).
        made = value.copy()
        for key, inner in value.items():
            made[key] = own_copy(inner, copies)
        return made
    if type(value) in (list, tuple, set):
        return type(value)(own_copy(v, copies) for v in value)
    return value


def laid_out(
    value: Tensor, param: Tensor, dtype: torch.dtype, device: torch.device | None = None
) -> Tensor:
    """Return a copy of a tensor, of this dtype, as the parameter lies in memory where it can.

    It is spread over ranks as the parameter is.
    """
    value = placed(value, param)
    device = value.device if device is None else device
    source = value.detach()
    if type(value) is Tensor and value.shape == param.shape and value.dim() > 1:
        made = torch.empty_like(param, dtype=dtype, device=device, requires_grad=False)
        if type(made) is Tensor:
            return made.copy_(source)
    return source.to(device=device, dtype=dtype, copy=True)


def cast_state(param: Tensor, value: Any, key: str | None, flags: Mapping[str, Any]) -> Any:
    """Copy saved state to the parameter's device and dtype, as torch's optimizers cast it."""
    if isinstance(value, Tensor):
        if key == "step":
            if flags.get("capturable") or flags.get("fused"):
                return value.to(dtype=torch.float32, device=param.device, copy=True)
            return own_copy(value)
        dtype = param.dtype if param.is_floating_point() else value.dtype
        return laid_out(value, param, dtype, param.device)
    if isinstance(value, dict):
        return {k: cast_state(param, v, k, flags) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return type(value)(cast_state(param, v, None, flags) for v in value)
    return value


def moved(value: Any, device: torch.device) -> Any:
    """State with its tensors on ``device``."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, device) for v in value)
    return value
