"""Audits: does what the loops read at their offsets agree with what Python says?

The offsets were looked for in known tensors (tensor_layout.py). An audit asks the other way round,
of probes with telling values before the loops are used at all, and now and then of tensors in use.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from steprule.engines.native.switch import turn_off_for_good
from steprule.engines.native.tensor_layout import (
    INLINE_AXES,
    TensorLayout,
    half_word,
    may_be_address,
    word,
    words_at,
)

# How many tensors an audit of those in use looks at.
SAMPLE = 32


def mismatch(layout: TensorLayout, tensor: Tensor) -> str | None:
    """Return the name of a field whose offset does not fit the tensor; None if all do.

    Each address is compared before anything is read there.
    """
    impl = tensor._cdata
    if word(id(tensor) + layout.tensor) != impl:
        return "tensor"
    axes = tensor.dim()
    sizes, strides = [*tensor.shape], [*tensor.stride()]
    known = words_at(impl + layout.shape, 1 + 2 * INLINE_AXES + 2)
    seen = known[0], known[1 : 1 + axes], known[1 + INLINE_AXES :][:axes], known[-2:]
    if axes <= INLINE_AXES and seen != (
        axes,
        sizes,
        strides,
        [tensor.storage_offset(), tensor.numel()],
    ):
        return "shape"
    storage = tensor.untyped_storage()
    if word(impl + layout.storage) != storage._cdata:
        return "storage"
    if word(storage._cdata + layout.data) != storage.data_ptr():
        return "data"
    if word(impl + layout.object) & ~1 != id(tensor):
        return "object"
    counter = word(impl + layout.counter)
    if not may_be_address(counter) or half_word(counter + layout.version) != tensor._version:
        return "version"
    return _mismatch_of_grad(layout, tensor)


def _mismatch_of_grad(layout: TensorLayout, tensor: Tensor) -> str | None:
    meta = word(tensor._cdata + layout.autograd)
    grad = tensor.grad if tensor.is_leaf else None
    if meta == 0:
        return None if grad is None and not tensor.requires_grad else "autograd"
    if not may_be_address(meta):
        return "autograd"
    if grad is not None and type(grad) not in (Tensor, torch.nn.Parameter):
        return None  # a class of its own may answer anything
    found = word(meta + layout.grad)
    if tensor.is_leaf and found != (layout.undefined if grad is None else grad._cdata):
        return "grad"
    return None


def mismatch_of_probes(layout: TensorLayout) -> str | None:
    """Return what does not fit tensors that are made for it: no two of their numbers are alike."""
    base = torch.zeros(300, dtype=torch.float64, device="cpu")
    view = base.as_strided((2, 3, 4), (41, 13, 2), 11)
    with_grad, without = (torch.nn.Parameter(view) for _ in range(2))
    with_grad.grad = torch.ones_like(base.as_strided((2, 3, 4), (41, 13, 2), 11))
    for param, changes in ((with_grad, 37), (without, 53)):
        for _ in range(changes):
            torch.autograd.graph.increment_version([param])
    # Of memory that is not torch's own, what frees it is not the memory itself.
    foreign = torch.frombuffer(bytearray(64), dtype=torch.float32)
    probes: list[Tensor] = [with_grad, without, with_grad.grad, foreign]
    for tensor in probes:
        found = mismatch(layout, tensor)
        if found is not None:
            return found
    has_metadata = [word(p._cdata + layout.autograd) != 0 for p in (with_grad, without)]
    if not all(has_metadata) or word(base._cdata + layout.autograd) != 0:
        return "autograd"
    return None


def audit(layout: TensorLayout, tensors: Sequence[Tensor], turn: int) -> bool:
    """Look at some of these tensors, others at each turn; if one does not fit, turn the loops off.

    What autograd changes meanwhile is looked at once more.

    Returns:
        Whether all fit.
    """
    step = max(1, len(tensors) // SAMPLE)
    for tensor in tensors[turn % step :: step]:
        found = mismatch(layout, tensor) and mismatch(layout, tensor)
        if found:
            turn_off_for_good(found)
            return False
    return True
