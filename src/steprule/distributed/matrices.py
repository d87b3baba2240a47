"""Matrices that are spread over ranks, each gathered and worked on by one of them.

What follows from a whole matrix can't be computed of its parts. Each is sent to one rank, which
works on it whole and sends the parts of the result back; which one, goes round by cost, so that all
ranks work at once. A rank sends and receives one message to and from each other one, each way,
however many matrices there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from steprule.distributed.regions import ranges_of
from steprule.distributed.shards import Shard

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Makes of matrices, by their numbers, others of the same shapes.
Operate = Callable[[Mapping[int, Tensor]], Mapping[int, Tensor]]


@dataclass(frozen=True)
class SpreadMatrix:
    """Where a matrix's parts are.

    Attributes:
        number: of the parameter.
        shape: the whole one's.
        parts: of each rank (of the whole job) that has one, which part it is.
        owner: the rank that works on it.
    """

    number: int
    shape: torch.Size
    parts: Mapping[int, tuple[slice, ...]]
    owner: int

    def size_on(self, rank: int) -> int:
        """Return how many elements a rank has."""
        return prod(part.stop - part.start for part in self.parts[rank])


class SpreadMatrices:
    """An optimizer's matrices that are spread over ranks.

    Args:
        shards: what is here of each; the same on every rank that has a part.
        dtype: in which they are sent.
    """

    def __init__(self, shards: Sequence[Shard], dtype: torch.dtype) -> None:
        import torch.distributed as dist

        self._rank, self._dtype = dist.get_rank(), dtype
        self._device = shards[0].local.device
        parts = [parts_by_rank(shard.owner) for shard in shards]
        owners = owners_of([(tuple(p), s.owner.shape) for s, p in zip(shards, parts, strict=True)])
        self.matrices = [
            SpreadMatrix(shard.number, shard.owner.shape, of_ranks, owner)
            for shard, of_ranks, owner in zip(shards, parts, owners, strict=True)
        ]
        self._peers = sorted({rank for one in self.matrices for rank in one.parts} - {self._rank})

    def operated(self, values: Mapping[int, Tensor], operate: Operate) -> dict[int, Tensor]:
        """Return what is here of the results of an operation on whole matrices.

        Args:
            values: what is here of each matrix, by its number; the same ones on every rank.
            operate: the operation, asked for this rank's own matrices.
        """
        matrices = [one for one in self.matrices if one.number in values]
        received = self._exchanged(
            {
                peer: [values[one.number] for one in matrices if one.owner == peer]
                for peer in self._peers
            },
            {
                peer: [one for one in matrices if one.owner == self._rank and peer in one.parts]
                for peer in self._peers
            },
            of_peer=True,
        )
        own = [one for one in matrices if one.owner == self._rank]
        whole: dict[int, Tensor] = {}
        for one in own:
            whole[one.number] = matrix = torch.empty(
                one.shape, dtype=self._dtype, device=self._device
            )
            matrix[one.parts[self._rank]] = values[one.number].to(self._dtype)
            for peer in one.parts:
                if peer != self._rank:
                    matrix[one.parts[peer]] = received[peer, one.number]
        made = operate(whole) if whole else {}
        returned = self._exchanged(
            {
                peer: [made[one.number][one.parts[peer]] for one in own if peer in one.parts]
                for peer in self._peers
            },
            {peer: [one for one in matrices if one.owner == peer] for peer in self._peers},
            of_peer=False,
        )
        found = {}
        for one in matrices:
            is_own = one.owner == self._rank
            part = (
                made[one.number][one.parts[self._rank]]
                if is_own
                else returned[one.owner, one.number]
            )
            found[one.number] = part.to(values[one.number].dtype)
        return found

    def _exchanged(
        self,
        sent: Mapping[int, Sequence[Tensor]],
        wanted: Mapping[int, Sequence[SpreadMatrix]],
        *,
        of_peer: bool,
    ) -> dict[tuple[int, int], Tensor]:
        """Send tensors to each peer in one message, and return what each has sent, by number.

        Args:
            sent: to each peer.
            wanted: the matrices of which each peer sends a part.
            of_peer: whether that is the part that the peer has; else the one that is here.
        """
        import torch.distributed as dist

        operations, buffers = [], {}
        for peer in self._peers:
            pieces = [tensor.reshape(-1).to(self._dtype) for tensor in sent[peer] if tensor.numel()]
            if pieces:
                operations.append(dist.P2POp(dist.isend, torch.cat(pieces), peer))
            count = sum(one.size_on(peer if of_peer else self._rank) for one in wanted[peer])
            buffers[peer] = torch.empty(count, dtype=self._dtype, device=self._device)
            if count:
                operations.append(dist.P2POp(dist.irecv, buffers[peer], peer))
        for work in dist.batch_isend_irecv(operations) if operations else ():
            work.wait()
        found = {}
        for peer in self._peers:
            start = 0
            for one in wanted[peer]:
                rank = peer if of_peer else self._rank
                shape = [part.stop - part.start for part in one.parts[rank]]
                end = start + prod(shape)
                found[peer, one.number] = buffers[peer][start:end].view(shape)
                start = end
        return found

    def bytes_sent(self) -> int:
        """Return how many bytes this rank sends in a step, both ways together."""
        elements = 0
        for one in self.matrices:
            if one.owner == self._rank:
                elements += sum(one.size_on(rank) for rank in one.parts if rank != self._rank)
            else:
                elements += one.size_on(self._rank)
        return elements * self._dtype.itemsize

    def note(self) -> str:
        """Say who works on what, and what is sent."""
        own = sum(one.owner == self._rank for one in self.matrices)
        return (
            f"{len(self.matrices)} matrices are spread over ranks: this one works on {own} of them "
            f"and sends {self.bytes_sent():,} bytes a step, in {2 * len(self._peers)} messages"
        )


def owners_of(matrices: Sequence[tuple[tuple[int, ...], torch.Size]]) -> list[int]:
    """Return which rank works on each matrix: the one with least to do so far, largest first.

    Counted among matrices that the same ranks share.

    Args:
        matrices: the ranks that have a part, and the shape.
    """
    # Ranks need not know of the same matrices, but those that share one do of all that they share.
    loads = {ranks: dict.fromkeys(ranks, 0) for ranks, _ in matrices}
    found = [0] * len(matrices)
    costs = [_cost(shape) for _, shape in matrices]
    for i in heapq.nlargest(len(costs), range(len(costs)), key=lambda i: (costs[i], -i)):
        of_ranks = loads[matrices[i][0]]
        owner = min(of_ranks, key=lambda rank: (of_ranks[rank], rank))
        of_ranks[owner] += costs[i]
        found[i] = owner
    return found


def _cost(shape: Sequence[int]) -> int:
    """Return what a matrix costs: products of it with its own square on the short side."""
    rows, columns = shape[0], prod(shape[1:])
    return rows * columns * min(rows, columns) + 1


def parts_by_rank(param: DTensor) -> dict[int, tuple[slice, ...]]:
    """Return which part of a sharded parameter each rank has that shares this one's.

    Raises:
        ValueError: it is sharded in a way that makes no such parts.
    """
    mesh, here = param.device_mesh, param.device_mesh.get_coordinate()
    assert here is not None
    axes = [
        range(mesh.size(axis)) if not placement.is_replicate() else [here[axis]]
        for axis, placement in enumerate(param.placements)
    ]
    found = {}
    for coordinate in product(*axes):
        ranges = ranges_of(param, coordinate)
        rank = int(mesh.mesh[coordinate])
        found[rank] = tuple(slice(start, end) for start, end in ranges)
    own = found[int(mesh.mesh[tuple(here)])]
    if [part.stop - part.start for part in own] != [*param._local_tensor.shape]:
        raise ValueError(f"placements {param.placements} make no parts that are known")
    return found
