"""Tensors put where a parameter is: cut as it is sharded, or made whole."""

from __future__ import annotations

import torch
from torch import Tensor

from steprule.distributed import shards
from steprule.distributed.pieces import PiecedTensor, Ranges
from steprule.distributed.regions import ranges_of
from steprule.distributed.shards import is_dtensor, is_sharded, local_of, spreads_alike, wrapped


def whole_of(value: Tensor) -> Tensor:
    """Return all elements of a tensor in a plain one; every rank of a sharded one must come."""
    if isinstance(value, PiecedTensor):
        return value.whole()
    with torch.no_grad():
        return shards.whole_of(value)


def placed(value: Tensor, param: Tensor) -> Tensor:
    """Return what belongs to a parameter, spread over ranks as the parameter is.

    Args:
        value: plain, as each rank must have it, in pieces in files, or sharded in any way. One
            number, or what is not of the parameter's shape or a shorter one, stays whole.
        param: plain or sharded.

    Returns:
        ``value`` itself, or a part of it, where it need not be moved.
    """
    if not is_sharded(param) or value.dim() == 0:
        return whole_of(value)
    if spreads_alike(value, param):
        return value
    if not can_be_cut(value.shape, param):
        return whole_of(value)
    known = value if isinstance(value, PiecedTensor) else whole_of(value)
    return cut_as(known, param)


def look_at(value: Tensor, param: Tensor | None) -> None:
    """Have what :func:`placed` will read of a tensor looked at for damage; it raises if it is.

    Args:
        value: as of that.
        param: likewise; None where all is read.
    """
    if not isinstance(value, PiecedTensor):
        return
    # Of what is in one axis, with a parameter that has several, formats may need the whole.
    is_alike = param is not None and is_sharded(param) and value.dim() >= min(param.dim(), 2)
    if param is None or not is_alike or not can_be_cut(value.shape, param):
        value.look_at()
    else:
        value.look_at(_ranges_here(value.shape, param))


def can_be_cut(shape: torch.Size, param: Tensor) -> bool:
    """Tell whether what has this shape can be sharded as a parameter is.

    Along each dimension in which that is cut it must be as long; or have one element, which every
    rank has; or be shorter by a factor of which no shard has a fraction.
    """
    assert is_dtensor(param)
    ways: dict[int, int] = {}
    for axis, placement in enumerate(param.placements):
        dim = getattr(placement, "dim", None)
        if isinstance(dim, int):
            ways[dim] = ways.get(dim, 1) * param.device_mesh.size(axis)
    return all(
        dim < len(shape)
        and (
            shape[dim] in (param.shape[dim], 1)
            or (shape[dim] % count == 0 and param.shape[dim] % count == 0)
        )
        for dim, count in ways.items()
    )


def cut_as(whole: Tensor, param: Tensor) -> Tensor:
    """Return a plain tensor that every rank has, sharded as a parameter is; nothing is sent."""
    assert is_dtensor(param)
    ranges = _ranges_here(whole.shape, param)
    if ranges is None:  # a rank that has nothing of it
        return wrapped(torch.empty(0, dtype=whole.dtype), param, whole.shape)
    if isinstance(whole, PiecedTensor):
        return wrapped(whole.part(ranges), param, whole.shape)
    here = whole.detach()[tuple(slice(*each) for each in ranges)]
    return wrapped(here, param, whole.shape)


def _ranges_here(shape: torch.Size, param: Tensor) -> Ranges | None:
    """Return what this rank has of a tensor of this shape that is sharded as a parameter is."""
    assert is_dtensor(param)
    coordinate = param.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    return ranges_of(wrapped(local_of(param), param, shape), coordinate)
