"""Tensors sent from the ranks that have them to all others, as bytes: whatever their dtypes are.

Many are sent in one message. Where ranks have about as much to send, that is one ``all_gather`` of
them all, padded to the longest: one message in which every rank sends and receives at once. Where
one has much more (a large embedding), padding would multiply what is sent, and each sends its own
by a ``broadcast``. Either way every byte goes round once; a message takes at most :data:`AT_ONCE`
bytes, or one tensor, so that there is never a second copy of a model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: The most bytes that all ranks together send in one message.
AT_ONCE = 64 * 1024 * 1024
# Padding is taken into the bargain up to this much of what there is to send.
_PADDED = 1.25
# Where a tensor may begin, of any dtype; before the first one there is as much room for a mark.
_ALIGNED = 16


@dataclass(frozen=True)
class Bucket:
    """Neighbouring tensors of one rank that are sent in one message.

    Attributes:
        first: the first one's index.
        starts: of each, the byte where it begins.
        size: in bytes, all of them together.
    """

    first: int
    starts: tuple[int, ...]
    size: int


NOTHING = Bucket(0, (), 0)


class ByteExchange:
    """Sends tensors to all ranks of a group.

    Args:
        group: the ranks, all of which must come.
        device: on which messages are made.
    """

    def __init__(self, group: ProcessGroup, device: torch.device) -> None:
        import torch.distributed as dist

        self._dist, self._group, self._device = dist, group, device
        # By its name from torch 2.13 on, where the other one warns.
        newer = getattr(dist, "all_gather_single", None)
        self._all_gather: Any = dist.all_gather_into_tensor if newer is None else newer
        self._rank, self._ranks = dist.get_rank(group), dist.get_world_size(group)
        self._global = [dist.get_global_rank(group, rank) for rank in range(self._ranks)]

    def send(self, tensors: Sequence[Sequence[Tensor]], mark: int = 0) -> list[int]:
        """Write every rank's tensors into those of the same place on all others.

        Args:
            tensors: of each rank, of the same sizes everywhere: this rank's own are sent, others
                written to. What is on the ``meta`` device is received, and not kept.
            mark: a number of one byte that is sent along.

        Returns:
            The marks of all ranks.
        """
        sizes = [[tensor.nbytes for tensor in of_rank] for of_rank in tensors]
        rounds = self.rounds(sizes)
        marks = None
        if not rounds or not self.is_gathered(rounds[0]):
            marks = self._marks_alone(mark)
        with torch.no_grad():
            for buckets in rounds:
                if not self.is_gathered(buckets):
                    self._broadcast(tensors, buckets)
                    continue
                found = self._gather(tensors, buckets, mark)
                marks = found if marks is None else marks
        assert marks is not None
        return marks.tolist()  # of a device they are waited for

    def rounds(self, sizes: Sequence[Sequence[int]]) -> list[list[Bucket]]:
        """Return of each message, or round of them, what each rank sends."""
        of_ranks = [buckets_of(own, AT_ONCE // self._ranks) for own in sizes]
        return [list(one) for one in zip_longest(*of_ranks, fillvalue=NOTHING)]

    def is_gathered(self, buckets: Sequence[Bucket]) -> bool:
        """Tell whether a round is one message; otherwise one of each rank that has anything."""
        sizes = [bucket.size for bucket in buckets]
        return max(sizes) * len(sizes) <= _PADDED * sum(sizes)

    def _marks_alone(self, mark: int) -> Tensor:
        own = torch.tensor([mark], dtype=torch.uint8, device=self._device)
        marks = own.new_empty(self._ranks)
        self._all_gather(marks, own, group=self._group)
        return marks

    def _gather(
        self, tensors: Sequence[Sequence[Tensor]], buckets: Sequence[Bucket], mark: int
    ) -> Tensor:
        length = _ALIGNED + max(bucket.size for bucket in buckets)
        own = torch.empty(length, dtype=torch.uint8, device=self._device)
        own[0] = mark
        own_bucket = buckets[self._rank]
        _pack(tensors[self._rank], own_bucket, own[_ALIGNED:])
        whole = torch.empty(self._ranks * length, dtype=torch.uint8, device=self._device)
        self._all_gather(whole, own, group=self._group)
        rows = whole.view(self._ranks, length)
        for rank, bucket in enumerate(buckets):
            if rank != self._rank:
                _unpack(tensors[rank], bucket, rows[rank, _ALIGNED:])
        return rows[:, 0]

    def _broadcast(self, tensors: Sequence[Sequence[Tensor]], buckets: Sequence[Bucket]) -> None:
        for rank, bucket in enumerate(buckets):
            if not bucket.size:
                continue
            buffer = torch.empty(bucket.size, dtype=torch.uint8, device=self._device)
            if rank == self._rank:
                _pack(tensors[rank], bucket, buffer)
            self._dist.broadcast(buffer, self._global[rank], group=self._group)
            if rank != self._rank:
                _unpack(tensors[rank], bucket, buffer)


def buckets_of(sizes: Sequence[int], most: int) -> list[Bucket]:
    """Return neighbouring tensors in buckets of at most so many bytes, or of one tensor.

    Args:
        sizes: of each tensor, in bytes.
        most: bytes.
    """
    found: list[Bucket] = []
    starts: list[int] = []
    first = end = 0
    for i, size in enumerate(sizes):
        if starts and end + size > most:
            found.append(Bucket(first, tuple(starts), end))
            starts, first, end = [], i, 0
        starts.append(end)
        end += -(-size // _ALIGNED) * _ALIGNED
    if end:
        found.append(Bucket(first, tuple(starts), end))
    return found


def _in_bucket(
    tensors: Sequence[Tensor], bucket: Bucket, buffer: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the tensors of a bucket, each with its place in a buffer."""
    for tensor, start in zip(tensors[bucket.first :], bucket.starts, strict=False):
        if tensor.numel() and not tensor.is_meta:
            room = buffer[start : start + tensor.nbytes]
            yield tensor.detach(), room.view(tensor.dtype).view(tensor.shape)


def _pack(tensors: Sequence[Tensor], bucket: Bucket, buffer: Tensor) -> None:
    for tensor, room in _in_bucket(tensors, bucket, buffer):
        room.copy_(tensor)


def _unpack(tensors: Sequence[Tensor], bucket: Bucket, buffer: Tensor) -> None:
    # In place, so that autograd knows of it.
    for tensor, room in _in_bucket(tensors, bucket, buffer):
        tensor.copy_(room)
