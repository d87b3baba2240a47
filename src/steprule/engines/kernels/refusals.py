"""What must hold of a leaf for kernels to reach all of it by address, whatever the device."""

from __future__ import annotations

import torch
from torch import Tensor

from steprule.engines.engine import Leaf
from steprule.engines.kernels.memory import (
    PLAIN,
    are_laid_out_alike,
    counts_of,
    has_memory,
)
from steprule.formats.floating import FLOATING, is_transformed
from steprule.language.form import Form

# Rows of a sharded parameter that make chunks of their own.
_SHORTEST_ROW = 128


def param_refusal(leaf: Leaf) -> str | None:
    """Say why kernels can't take the parameter or its gradient; None if they can."""
    param = leaf.param
    if is_transformed(leaf.grad):
        return "the gradient is a transform's of torch.func, without memory of its own"
    if type(param) not in PLAIN or type(leaf.grad) not in PLAIN:
        return f"{type(param).__name__} is a tensor subclass"
    if param.layout is not torch.strided:
        return f"the parameter's layout is {param.layout}"
    if param.dtype not in FLOATING or param.dtype is torch.complex32:
        return f"there is no kernel for {param.dtype}"
    region = leaf.region
    if region is not None and not region.is_one_row and region.length < _SHORTEST_ROW:
        return (
            f"it is sharded into rows of {region.length} elements, whose random bits would have to "
            f"be told one by one: there are kernels from {_SHORTEST_ROW} on"
        )
    if param.is_inference():
        return "the parameter was made in inference mode"
    if param.is_conj() or param.is_neg():
        return "the parameter is a lazy conjugate or negative view"
    if not _is_dense(param):
        return "the parameter is a strided view with gaps, or overlaps itself"
    if not has_memory(param):
        return "the parameter has no memory of its own"
    return None


def state_refusal(leaf: Leaf, form: Form) -> str | None:
    """Say why kernels can't take its state; None if they can.

    Step counts and scalar slots may be on the host.
    """
    storage, device = leaf.storage, leaf.param.device
    if storage.without_text is not None:
        return f"the format of {storage.without_text}, has no text for kernels"
    if not storage.is_plain and not leaf.param.is_contiguous():
        return "the parameter's elements are not in the order of its axes, as its format needs"
    if storage.has_blocks and form.recording().has_axes:
        return "the rule tells rows from columns, and its state is stored in blocks"
    for name in storage.keys:
        slot = leaf.state[name]
        if type(slot) not in PLAIN or slot.device != device:
            return f"its state {name!r} is not a plain tensor on {device}"
        is_laid_out = (
            slot.is_contiguous()
            if name in form.each_slots or slot.shape != leaf.param.shape
            else are_laid_out_alike(slot, leaf.param)
        )
        if not is_laid_out:
            return f"its state {name!r} is laid out in memory otherwise than the parameter"
        if slot.is_conj() or slot.is_neg() or not has_memory(slot):
            return f"its state {name!r} has no memory of its own"
    for name in counts_of(form, storage):
        count = leaf.state[name]
        if type(count) not in PLAIN or count.layout is not torch.strided or not has_memory(count):
            return f"its {name!r} is not a plain tensor with memory of its own"
        if count.device.type not in ("cpu", device.type):
            return f"its {name!r} is on {count.device}, the parameter on {device}"
        if count.dtype not in (torch.float32, torch.float64):
            return f"its {name!r} is {count.dtype}, not float32 or float64"
    return None


def _is_dense(tensor: Tensor) -> bool:
    """Tell whether the tensor's elements fill one block of memory, in whatever order of axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride != expected:
                return False
            expected *= size
    return True
