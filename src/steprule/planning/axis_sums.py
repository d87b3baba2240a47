"""Sums of rows and columns of matrices that are spread over ranks.

Where the axis that is summed along is cut, each rank has a part of every sum; those of all
parameters that the same ranks share are added up in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steprule.distributed.sums import all_reduce
from steprule.formats.floating import compute_dtype
from steprule.language.recording import Operation
from steprule.planning.spread_param import SpreadParam

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

# Which row of a level's reductions, and which parameter.
Key = tuple[int, int]


def sums_along_axes(
    spread: Iterable[SpreadParam], level: int, here: Mapping[Key, Tensor]
) -> dict[Key, Tensor]:
    """Return the sums, or means, along axes over all ranks.

    Args:
        spread: the rule's parameters that are spread over ranks, whether or not they have a
            gradient here: all ranks send messages alike.
        level: of the reductions.
        here: what is here of them, of those parameters that have a gradient.
    """
    found: dict[Key, Tensor] = {}
    waiting: dict[ProcessGroup, list[Key]] = {}
    divisors: dict[Key, int] = {}
    for one in spread:
        for row, reduction in enumerate(one.at(level)):
            if reduction.axis is None:
                continue
            key = row, one.number
            found[key] = here[key] if key in here else _nothing(one, reduction)
            divisors[key] = _divisor(one, reduction)
            for group in one.shard.groups_along(reduction.axis):
                waiting.setdefault(group, []).append(key)
    for group, keys in waiting.items():
        vector = torch.cat([found[key].reshape(-1).to(torch.float64) for key in keys])
        all_reduce(vector, [group])
        parts = torch.split(vector, [found[key].numel() for key in keys])
        for key, part in zip(keys, parts, strict=True):
            found[key] = part.view(found[key].shape).to(found[key].dtype)
    return {key: value / divisors[key] for key, value in found.items()}


def _divisor(one: SpreadParam, reduction: Operation) -> int:
    assert reduction.axis is not None
    return max(1, one.shard.owner.shape[reduction.axis]) if reduction.name == "mean_of" else 1


def _nothing(one: SpreadParam, reduction: Operation) -> Tensor:
    """Return what a parameter without a gradient adds here: zeros."""
    shape = [*one.shard.local.shape]
    if reduction.result.each != "row":
        shape[-2] = 1
    if reduction.result.each != "column":
        shape[-1] = 1
    return one.shard.local.new_zeros(shape, dtype=compute_dtype(one.shard.local))
