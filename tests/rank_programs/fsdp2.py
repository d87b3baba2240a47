"""``fully_shard``, wherever this torch has it."""

from __future__ import annotations

try:
    from torch.distributed.fsdp import fully_shard
except ImportError:  # before torch 2.6
    from torch.distributed._composable.fsdp import fully_shard

__all__ = ["fully_shard"]
