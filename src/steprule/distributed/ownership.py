"""Which rank of a group keeps the state of which parameter, where each has all parameters whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor

from steprule.distributed.shards import Shard

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class OwnedParam(Shard):
    """A parameter that every rank has, and one updates: to sums over ranks it alone adds anything.

    Args:
        param: a plain tensor.
        number: which one it is among the optimizer's, the same on every rank.
        rank: its owner's, in the group.
        group: whose ranks have the parameter.
    """

    def __init__(self, param: Tensor, number: int, rank: int, group: ProcessGroup) -> None:
        self.owner = cast(Any, param)  # a shard's is a DTensor
        self.number, self.rank = number, rank
        self.local = param
        self.groups = (group,)

    @property
    def grad(self) -> Tensor | None:
        """The gradient; None if it has none."""
        return self.local.grad

    def part_of(self, grad: Tensor) -> Tensor:
        """Return all of a tensor that belongs to the parameter."""
        return grad

    def holds(self) -> bool:
        """Tell whether the parameter is as it was."""
        return True


def owners_of(params: Sequence[Tensor], ranks: int, known: Sequence[int | None] = ()) -> list[int]:
    """Return the rank that is to keep the state of each parameter: the same list on every rank.

    The largest parameter goes first, each to the rank with the fewest bytes so far; frozen ones
    are dealt out by themselves, since they have no state. Parameters that share memory must be
    updated one after the other, so that one rank has them all.

    Args:
        params: all of them, in order.
        ranks: how many there are.
        known: of the first ones, who has them already; None for nobody.
    """
    found: list[int | None] = [*known, *[None] * (len(params) - len(known))]
    loads = {True: [0] * ranks, False: [0] * ranks}
    for param, rank in zip(params, found, strict=True):
        if rank is not None:
            loads[param.requires_grad][rank] += param.nbytes
    together = _sharing_memory(params)
    waiting = [one for one in together if any(found[i] is None for i in one)]
    sizes = {id(one): sum(params[i].nbytes for i in one) for one in waiting}
    for one in sorted(waiting, key=lambda one: (-sizes[id(one)], one[0])):
        load = loads[any(params[i].requires_grad for i in one)]
        present = [rank for i in one if (rank := found[i]) is not None]
        owner = present[0] if present else min(range(ranks), key=load.__getitem__)
        load[owner] += sizes[id(one)]
        for i in one:
            found[i] = owner if found[i] is None else found[i]
    return [cast(int, rank) for rank in found]


def _sharing_memory(params: Sequence[Tensor]) -> list[list[int]]:
    """Return the indices of parameters, those together whose memory overlaps."""
    spans = sorted(_spans(params))
    found: list[list[int]] = []
    furthest: tuple[str, int] = ("", 0)
    for device, start, end, i in spans:
        if end > start and (device, start) < furthest and device == furthest[0]:
            found[-1].append(i)
        else:
            found.append([i])
        furthest = max(furthest, (device, end)) if device == furthest[0] else (device, end)
    return [sorted(one) for one in found]


def _spans(params: Sequence[Tensor]) -> Iterable[tuple[str, int, int, int]]:
    for i, param in enumerate(params):
        start = param.data_ptr() if param.numel() and not param.is_meta else 0
        axes = zip(param.shape, param.stride(), strict=True)
        last = sum((size - 1) * stride for size, stride in axes)
        length = (last + 1) * param.element_size() if start else 0
        yield str(param.device), start, start + length, i
