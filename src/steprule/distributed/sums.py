"""Sums over the ranks of process groups."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def all_reduce(vector: Tensor, groups: Iterable[ProcessGroup], *, largest: bool = False) -> None:
    """Add up a vector over the ranks of each group in turn, in place; or take the largest.

    Every rank has the same bits after it.
    """
    import torch.distributed as dist

    operation = dist.ReduceOp.MAX if largest else dist.ReduceOp.SUM
    for group in groups:
        dist.all_reduce(vector, operation, group)
