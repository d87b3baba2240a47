"""Sharded tensors (torch's ``DTensor``): the part that this process has, and where the rest is."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.tensor import DTensor

_MODULE = "torch.distributed.tensor"


def dtensor_class() -> type[DTensor] | None:
    """Return torch's class; None while nobody has imported it, so that there is no such tensor."""
    module = sys.modules.get(_MODULE)
    return None if module is None else cast("type[DTensor] | None", vars(module).get("DTensor"))


def is_dtensor(value: object) -> TypeGuard[DTensor]:
    """Tell whether something is a ``DTensor`` (not a subclass, which may mean something else)."""
    return type(value) is not Tensor and type(value) is dtensor_class()


def local_of(tensor: Tensor) -> Tensor:
    """Return what this process has of a tensor; a plain one is its own.

    What is still on its way from other ranks is waited for.
    """
    if not is_dtensor(tensor):
        return tensor
    local: Any = tensor._local_tensor
    return cast(Tensor, local.wait() if hasattr(local, "wait") else local)


def groups_of(tensor: Tensor) -> tuple[ProcessGroup, ...]:
    """Return the process groups over whose ranks a tensor's elements are spread.

    One for each dimension of its mesh along which it is sharded, in order; none for a plain tensor
    or one that every rank has whole. The sum of something over all elements is the local one,
    all-reduced over each of these groups in turn.
    """
    if not is_dtensor(tensor):
        return ()
    mesh = tensor.device_mesh
    return tuple(
        mesh.get_group(dim)
        for dim, placement in enumerate(tensor.placements)
        if not placement.is_replicate() and mesh.size(dim) > 1
    )


def wrapped(local: Tensor, like: DTensor, shape: Sequence[int] | None = None) -> DTensor:
    """Return a ``DTensor`` that is on this process ``local``, spread as ``like`` is.

    Args:
        local: a plain tensor.
        like: whose mesh and placements it gets. Along a dimension of which ``shape`` has one
            element, where ``like`` has more, every rank has it whole.
        shape: of the whole; by default that of ``like``.
    """
    from torch.distributed.tensor import DTensor, Replicate

    whole = like.shape if shape is None else tuple(shape)
    placements = [
        Replicate()
        if isinstance(dim := getattr(placement, "dim", None), int)
        and whole[dim] == 1
        and like.shape[dim] != 1
        else placement
        for placement in like.placements
    ]
    stride, product = [], 1
    for size in reversed(whole):
        stride.append(product)
        product *= max(size, 1)
    found: DTensor = DTensor.from_local(
        local,
        like.device_mesh,
        placements,
        run_check=False,
        shape=like.shape if shape is None else torch.Size(whole),
        stride=like.stride() if shape is None else tuple(reversed(stride)),
    )
    return found
