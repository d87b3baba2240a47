"""Sharded tensors (torch's ``DTensor``): the part that this process has, and where the rest is."""

from __future__ import annotations

import sys
from collections.abc import Container, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard, cast

import torch
from torch import Tensor
from torch.nn import Parameter

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


def is_sharded(value: object) -> TypeGuard[DTensor]:
    """Tell whether something is a ``DTensor`` of which each process has a plain part, or all.

    Not one whose parts must still be added up, or are of a class of their own.
    """
    return (
        is_dtensor(value)
        and type(value._local_tensor) in (Tensor, Parameter)
        and not any(placement.is_partial() for placement in value.placements)
    )


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


def replica_groups_of(
    params: Iterable[Tensor], spread_over: Container[ProcessGroup]
) -> list[ProcessGroup]:
    """Return the process groups of the parameters' meshes over which none of them is spread."""
    found: dict[ProcessGroup, None] = {}
    for param in params:
        if is_dtensor(param):
            mesh = param.device_mesh
            sizes = [(dim, mesh.size(dim)) for dim in range(mesh.ndim)]
            found.update({mesh.get_group(dim): None for dim, size in sizes if size > 1})
    return [group for group in found if group not in spread_over]


def wrapped(local: Tensor, like: DTensor, shape: Sequence[int] | None = None) -> DTensor:
    """Return a ``DTensor`` that is on this process ``local``, spread as ``like`` is.

    Args:
        local: a plain tensor.
        like: whose mesh and placements it gets. Along a dimension of which ``shape`` has one
            element, where ``like`` has more, every rank has it whole.
        shape: of the whole; by default that of ``like``.
    """
    from torch.distributed.tensor import DTensor, Replicate

    whole = like.shape if shape is None else torch.Size(shape)
    placements = [
        Replicate() if _is_collapsed(getattr(placement, "dim", None), whole, like) else placement
        for placement in like.placements
    ]
    stride = like.stride() if shape is None else _strides(whole)
    found: DTensor = DTensor.from_local(
        local, like.device_mesh, placements, run_check=False, shape=whole, stride=stride
    )
    return found


def whole_of(tensor: Tensor) -> Tensor:
    """Return all of a tensor, to which every rank must come if it is sharded."""
    if not is_dtensor(tensor):
        return tensor
    whole: Tensor = tensor.full_tensor()
    return whole


def spread_as(tensor: DTensor, like: Tensor) -> DTensor:
    """Return a tensor spread over ranks as another one is, to which every rank must come."""
    if not is_dtensor(like) or _is_spread_as(tensor, like):
        return tensor
    spread: DTensor = tensor.redistribute(like.device_mesh, like.placements)
    return spread


def _is_spread_as(tensor: DTensor, like: DTensor) -> bool:
    return tensor.placements == like.placements and tensor.device_mesh == like.device_mesh


def spreads_alike(tensor: Tensor, param: Tensor) -> bool:
    """Tell whether an array is spread as the sharded parameter that it belongs to is.

    Along a dimension of which it has one element, where the parameter has more, it is whole.
    """
    if not is_sharded(tensor) or not is_sharded(param):
        return False
    return tensor.device_mesh == param.device_mesh and all(
        own == placement
        or (
            own.is_replicate()
            and _is_collapsed(getattr(placement, "dim", None), tensor.shape, param)
        )
        for own, placement in zip(tensor.placements, param.placements, strict=True)
    )


def _is_collapsed(dim: int | None, shape: torch.Size, like: Tensor) -> bool:
    return dim is not None and shape[dim] == 1 and like.shape[dim] != 1


def _strides(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of a tensor in the order of its axes."""
    strides, product = [], 1
    for size in reversed(shape):
        strides.append(product)
        product *= max(size, 1)
    return tuple(reversed(strides))


def local_shape(shape: Sequence[int], param: Tensor) -> torch.Size:
    """Return the shape of what this process has of an array that belongs to a parameter.

    Args:
        shape: the whole array's: the parameter's, or one that is shorter along some dimensions.
        param: plain or sharded.
    """
    if not is_sharded(param) or len(shape) != param.ndim:
        return torch.Size(shape)
    sizes = zip(shape, param.shape, local_of(param).shape, strict=True)
    return torch.Size(own if size == whole else size for size, whole, own in sizes)


class Shard:
    """What this process has of one of an optimizer's parameters, which is sharded.

    Args:
        owner: the parameter, such that :func:`is_sharded`.
        number: which one it is among the optimizer's parameters that are sharded, the same on
            every rank.

    Attributes:
        local: the plain tensor that is here.
        groups: the process groups over whose ranks its elements are spread; none if each has all.
    """

    #: Whether nothing is to be sent: what is spread otherwise is told by zeros in its place.
    is_quiet = False

    def __init__(self, owner: DTensor, number: int) -> None:
        self.owner, self.number = owner, number
        self.local: Tensor = owner._local_tensor
        self.groups = groups_of(owner)
        self._spec = owner._spec

    @property
    def grad(self) -> Tensor | None:
        """What is here of its gradient; None if it has none.

        A gradient that is spread otherwise than the parameter is first spread alike, to which every
        rank must come.
        """
        grad = self.owner.grad
        return None if grad is None else self.part_of(grad)

    def part_of(self, grad: Tensor) -> Tensor:
        """Return what is here of a tensor that belongs to the parameter."""
        if not is_dtensor(grad):
            return grad
        if grad._spec is not self._spec:
            if self.is_quiet and not _is_spread_as(grad, self.owner):
                return torch.zeros_like(self.local, dtype=grad.dtype)
            with torch.no_grad():
                grad = spread_as(grad, self.owner)
        return local_of(grad)

    def groups_along(self, axis: int) -> tuple[ProcessGroup, ...]:
        """Return the process groups over whose ranks one of the parameter's axes is cut."""
        mesh, dim = self.owner.device_mesh, axis % self.owner.ndim
        return tuple(
            mesh.get_group(i)
            for i, placement in enumerate(self.owner.placements)
            if getattr(placement, "dim", None) == dim and mesh.size(i) > 1
        )

    def holds(self) -> bool:
        """Tell whether the parameter has this very part, and is spread as it was."""
        return self.owner._local_tensor is self.local and self.owner._spec is self._spec


def shards_of(params: Sequence[Tensor]) -> dict[Tensor, Shard]:
    """Return what this process has of those parameters that are sharded."""
    sharded = [param for param in params if is_sharded(param)]
    return {param: Shard(param, number) for number, param in enumerate(sharded)}
