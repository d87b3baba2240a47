"""What a kernel asks of a tensor's memory, and which of a leaf's tensors hold one number."""

from __future__ import annotations

import torch
from torch import Tensor

from steprule.formats.storage import ROUNDING_STEP, Storage
from steprule.language.form import Form

# The classes of tensors whose memory is what they say.
PLAIN = {Tensor, torch.nn.Parameter}


def has_memory(tensor: Tensor) -> bool:
    """Tell whether the tensor's elements are somewhere (or it has none)."""
    try:
        return tensor.data_ptr() != 0 or tensor.numel() == 0
    except RuntimeError:  # functorch wrappers, fake tensors
        return False


def are_laid_out_alike(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors of one shape have their elements in the same order in memory.

    Strides along axes of one element say nothing of it.
    """
    if one.stride() == other.stride() or one.numel() < 2:
        return True
    strides = zip(one.shape, one.stride(), other.stride(), strict=True)
    return all(size == 1 or stride == others for size, stride, others in strides)


def counts_of(form: Form, storage: Storage) -> tuple[str, ...]:
    """Return the step count, if there is one, and the slots of one number."""
    step = ("step",) if form.rule.counts_steps else ()
    rounding = (ROUNDING_STEP,) if storage.count == ROUNDING_STEP else ()
    return (*step, *rounding, *form.scalar_slots)
