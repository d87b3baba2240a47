"""What stands in another place, or takes other arguments, in older torch."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import fully_shard

__all__ = ["distributed_tensor", "fully_shard"]

# Every rank has the whole: nothing need be sent.
_SENDS_NOTHING = (
    {"src_data_rank": None}
    if "src_data_rank" in inspect.signature(distribute_tensor).parameters
    else {}
)


def distributed_tensor(whole: Tensor, mesh: Any, placements: Any) -> DTensor:
    """A tensor that every rank has, each keeping its part."""
    return distribute_tensor(whole, mesh, placements, **_SENDS_NOTHING)
