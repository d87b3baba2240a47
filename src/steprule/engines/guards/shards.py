"""A guard on sharded tensors: their parts here are the very ones that a plan was made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steprule.distributed.shards import Shard, is_dtensor
from steprule.engines.engine import Leaf


class ShardGuard:
    """Holds while sharded parameters have their parts, and their state these very tensors.

    Args:
        leaves: of sharded parameters.
    """

    def __init__(self, leaves: Sequence[Leaf]) -> None:
        self.shards: list[Shard] = [leaf.shard for leaf in leaves if leaf.shard is not None]
        self._items: list[tuple[dict[str, Any], str, Any]] = [
            (leaf.entry, name, leaf.entry[name])
            for leaf in leaves
            if leaf.entry is not None
            for name in leaf.state
        ]
        #: The state that is sharded, and its parts here.
        self.parts: list[tuple[Tensor, Tensor]] = [
            (value, value._local_tensor) for _, _, value in self._items if is_dtensor(value)
        ]

    def holds(self) -> bool:
        """Tell whether nothing was replaced, neither a part nor a whole."""
        return (
            all(shard.holds() for shard in self.shards)
            and all(entry.get(name) is value for entry, name, value in self._items)
            and all(whole._local_tensor is part for whole, part in self.parts)  # type: ignore[attr-defined]
        )


def shard_guard_of(leaves: Sequence[Leaf]) -> ShardGuard | None:
    """Return the guard of those leaves that are sharded; None if none is."""
    sharded = [leaf for leaf in leaves if leaf.shard is not None]
    return ShardGuard(sharded) if sharded else None
