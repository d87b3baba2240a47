"""Which part of a sharded tensor a process has, and which process stores it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steprule.distributed.regions import ranges_of

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

    from steprule.distributed.pieces import Ranges


def ranges_here(tensor: DTensor) -> Ranges | None:
    """Return from where to where this process has a tensor, in each dimension; None if nothing.

    Raises:
        ValueError: what it has is of another shape than such a part would be.
    """
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    found = ranges_of(tensor, coordinate)
    here = tuple(end - start for start, end in found)
    if here != tuple(tensor._local_tensor.shape):
        raise ValueError(
            f"is sharded as {tensor.placements}, where this process has {here} of "
            f"{tuple(tensor.shape)}, but has {tuple(tensor._local_tensor.shape)}"
        )
    return found


def is_first_to_have(tensor: DTensor) -> bool:
    """Tell whether no process before this one has the same part of a tensor."""
    coordinate = tensor.device_mesh.get_coordinate()
    return coordinate is not None and all(
        at == 0
        for at, placement in zip(coordinate, tensor.placements, strict=True)
        if placement.is_replicate()
    )
