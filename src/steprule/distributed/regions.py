"""Which elements of a sharded tensor a process has, numbered in the order of the whole's axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


@dataclass(frozen=True)
class Region:
    """Rows of neighbouring elements, each as far from the one before as rows of the whole are.

    Attributes:
        first: the number, in the whole, of the first element here.
        length: how many neighbours are in a row.
        stride: how far the next row's first element is.
    """

    first: int
    length: int
    stride: int

    def number_of(self, index: int) -> int:
        """Return which element of the whole is the one with this index here."""
        return self.first + index // self.length * self.stride + index % self.length

    def numbers(self, count: int, device: torch.device) -> Tensor:
        """Return the numbers in the whole of the first elements here, as int64."""
        index = torch.arange(count, device=device)
        if self.is_one_row or count <= self.length:
            return index.add_(self.first)
        rows = index.div(self.length, rounding_mode="floor")
        return rows.mul_(self.stride - self.length).add_(index).add_(self.first)

    @property
    def is_one_row(self) -> bool:
        """Whether all elements follow each other in the whole."""
        return self.length == self.stride


def region_of(param: DTensor) -> Region | None:
    """Return which elements are here of a sharded parameter; None if they make no such rows.

    They do if it is sharded along its first dimension, along one other, or along both.
    """
    coordinate = param.device_mesh.get_coordinate()
    if coordinate is None:
        return None
    known = ranges_of(param, coordinate)
    local, whole = [end - start for start, end in known], [*param.shape]
    if tuple(local) != tuple(param._local_tensor.shape):
        return None
    cut = [dim for dim in range(1, param.ndim) if local[dim] != whole[dim]]
    strides = [prod(whole[dim + 1 :]) for dim in range(param.ndim)]
    first = sum(start * stride for (start, _), stride in zip(known, strides, strict=True))
    if not cut:
        everything = max(1, prod(local))
        return Region(first, everything, everything)
    dim, *others = cut
    if others:
        return None
    return Region(first, max(1, local[dim] * strides[dim]), whole[dim] * strides[dim])


def ranges_of(param: DTensor, coordinate: Sequence[int]) -> list[tuple[int, int]]:
    """Return from where to where each dimension is on the rank with a coordinate in the mesh."""
    return [_range_of(param, dim, coordinate) for dim in range(param.ndim)]


def _range_of(param: DTensor, dim: int, coordinate: Sequence[int]) -> tuple[int, int]:
    mesh = param.device_mesh
    cuts: list[tuple[int, Any]] = [
        (axis, placement)
        for axis, placement in enumerate(param.placements)
        if getattr(placement, "dim", None) == dim
    ]
    # FSDP cuts again what tensor parallelism has cut, though its axis stands first in the mesh.
    cuts.sort(key=lambda cut: (hasattr(cut[1], "split_factor"), cut[0]))
    start, end = 0, param.shape[dim]
    for axis, _ in cuts:
        chunk = -(-(end - start) // mesh.size(axis))
        low = min(end, start + coordinate[axis] * chunk)
        start, end = low, min(end, low + chunk)
    return start, end
