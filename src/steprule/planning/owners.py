"""The ranks that an optimizer's state is divided among, and where they meet.

In a step they meet twice, whatever is updated: in one small vector before anything has changed, by
which all go on or none does, and, after the update, in what the parameters have become. Where
guards are on, the sums of squares are in that vector.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from steprule.distributed.byte_exchange import ByteExchange
from steprule.distributed.ownership import OwnedParam, owners_of
from steprule.planning.rank_sums import RankSums, RefusedElsewhereError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: What all ranks do together beside steps.
Errand = Literal["state_dict()", "averaged()"]
# What a rank that is on one says in the place of a refusal: more than there are ranks.
_ERRANDS: Mapping[Errand, float] = {"state_dict()": 2.0**20, "averaged()": 2.0**40}
# What a rank says that has failed in the midst of an update.
_FAILED = 1


class Meeting(RankSums):
    """The small vector of a step: one sum a parameter, and who has a gradient.

    Args:
        parts: all parameters.
    """

    def __init__(self, parts: Sequence[OwnedParam]) -> None:
        super().__init__(parts, rows=1)
        self._ranks = parts[0].groups[0].size()

    def agree(self, numbers: Sequence[int], *, objects: bool) -> bool:
        """Tell whether no rank objects to a step.

        Args:
            numbers: of the parameters that this rank will update.
            objects: whether this one does.

        Raises:
            RefusedElsewhereError: another rank can't take the step.
        """
        matrix = self._new_matrix()
        matrix[self._rows, list(numbers)] = 1.0
        objections = self._reduce(matrix, number=float(objects))
        self._presence = matrix[self._rows]
        return objections == 0

    def come_for(self, errand: Errand) -> None:
        """Wait until all ranks are on an errand.

        Raises:
            RuntimeError: one is not: it takes a step, or is on another errand.
        """
        self._reduce(self._new_matrix(), refused=_ERRANDS[errand])
        if self.refusals != _ERRANDS[errand] * self._ranks:
            raise RuntimeError(
                f"optimizer.{errand} must be called on every rank, since each has a part of the "
                "state: another one takes a step, or does something else. Call it outside of "
                "`if rank == 0`"
            )

    def _refusal(self, refusals: float) -> RefusedElsewhereError:
        if refusals < min(_ERRANDS.values()):
            return super()._refusal(refusals)
        known = [errand for errand, told in _ERRANDS.items() if refusals >= told]
        return RefusedElsewhereError(
            f"this process takes a step, while another one of its job calls optimizer.{known[-1]}: "
            "every rank must, since each has a part of the state. Nothing was changed here"
        )


class Owners:
    """Who keeps the state of which parameter.

    Args:
        group: the ranks.

    Attributes:
        group: likewise.
        rank: this one, in the group.
        size: how many there are.
        parts: each parameter's owner.
        is_for_first: whether state is collected for the first rank alone.
    """

    def __init__(self, group: ProcessGroup) -> None:
        import torch.distributed as dist

        self.group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.parts: dict[Tensor, OwnedParam] = {}
        self.is_for_first = False
        self._params: list[Tensor] = []
        self._meeting: Meeting | None = None
        self._is_stepping = False
        self._are_waiting = False

    def cover(self, groups: Iterable[Mapping[str, Any]]) -> None:
        """Have an owner for each parameter of an optimizer's groups; those that are known stay."""
        params = [param for group in groups for param in group["params"]]
        if len(params) == len(self._params) and all(map(operator.is_, params, self._params)):
            return
        known = [part.rank if (part := self.parts.get(p)) is not None else None for p in params]
        ranks = owners_of(params, self.size, known)
        self.parts = {
            param: OwnedParam(param, number, rank, self.group)
            for number, (param, rank) in enumerate(zip(params, ranks, strict=True))
        }
        self._params = params
        self._meeting = Meeting(list(self.parts.values())) if params else None

    @property
    def meeting(self) -> Meeting:
        """Where ranks meet before a step."""
        assert self._meeting is not None, "an optimizer has parameters"
        return self._meeting

    def has(self, param: Tensor) -> bool:
        """Tell whether this rank has a parameter's state."""
        part = self.parts.get(param)
        return part is None or part.rank == self.rank

    @contextmanager
    def step(self, groups: Iterable[Mapping[str, Any]]) -> Iterator[None]:
        """Have the others told, where they wait, if this rank raises in its step."""
        if self._is_stepping:  # a step within a step, as of a subclass
            yield
            return
        self.cover(groups)
        self.meeting.has_met = self._are_waiting = False
        self._is_stepping = True
        try:
            yield
        except BaseException:
            with suppress(Exception):  # of what this rank raises, not of that
                if not self.meeting.has_met:
                    self.meeting.refuse()
                elif self._are_waiting:
                    self.send_updated(has_failed=True)
            raise
        finally:
            self._is_stepping = False

    def agree(self, numbers: Sequence[int], *, objects: bool) -> bool:
        """Tell whether all ranks go on with a step."""
        return self.meeting.agree(numbers, objects=objects)

    def admit(self) -> None:
        """Note that the step was admitted on all ranks, which will meet after it."""
        self._are_waiting = True

    def send_updated(self, *, has_failed: bool = False) -> None:
        """Send what this rank has updated to all others, and take over what they have.

        Args:
            has_failed: whether this rank's update has stopped in the midst.

        Raises:
            RuntimeError: another rank's has.
        """
        self._are_waiting = False
        present = self.meeting.present().tolist()
        marks = self._send(
            [param for param, part in self.parts.items() if present[part.number]],
            _FAILED if has_failed else 0,
        )
        failed = [rank for rank, mark in enumerate(marks) if mark == _FAILED]
        if failed and not has_failed:
            raise RuntimeError(
                f"rank {failed[0]} of the group stopped in the midst of an update, with an error "
                "of its own: look there. Its parameters are half updated: go on from the last "
                "checkpoint"
            )

    def send(self, params: Iterable[Tensor], errand: Errand) -> None:
        """Have parameters on every rank be what they are on their owners.

        Raises:
            RuntimeError: other ranks do something else.
        """
        self.meeting.come_for(errand)
        self._send(params, 0)

    def _send(self, params: Iterable[Tensor], mark: int) -> list[int]:
        of_ranks: list[list[Tensor]] = [[] for _ in range(self.size)]
        for param in params:
            of_ranks[self.parts[param].rank].append(param)
        return self.exchange().send(of_ranks, mark)

    def exchange(self) -> ByteExchange:
        """Return what sends tensors to all ranks."""
        return ByteExchange(self.group, self._params[0].device)

    @contextmanager
    def for_first(self) -> Iterator[None]:
        """Have state collected for the first rank alone within a block."""
        self.is_for_first = True
        try:
            yield
        finally:
            self.is_for_first = False

    def note(self) -> str:
        """Say who has what, and what a step sends."""
        own = [param for param in self._params if self.has(param)]
        sizes: list[list[int]] = [[] for _ in range(self.size)]
        for param, part in self.parts.items():
            if param.requires_grad:
                sizes[part.rank].append(param.nbytes)
        exchange = self.exchange()
        rounds = exchange.rounds(sizes)
        messages = sum(
            1 if exchange.is_gathered(one) else sum(bucket.size > 0 for bucket in one)
            for one in rounds
        )
        return (
            f"state is divided among {self.size} ranks: this one, {self.rank}, has that of "
            f"{len(own)} of {len(self._params)} parameters, {_elements(own):,} of "
            f"{_elements(self._params):,} elements, and sends {sum(sizes[self.rank]):,} of "
            f"{sum(map(sum, sizes)):,} bytes a step, in {messages} "
            f"message{'s' * (messages != 1)} of all ranks"
        )


def _elements(params: Iterable[Tensor]) -> int:
    return sum(param.numel() for param in params)


def refuse_unsuited(param: Tensor, label: str) -> None:
    """Refuse a parameter that ranks can't have whole, each of them.

    Raises:
        ValueError: it is sharded, or has no memory or another layout.
    """
    from steprule.distributed.shards import is_dtensor

    problem = ""
    if is_dtensor(param):
        problem = "is a DTensor, whose state is divided among ranks as it is: step as usual"
    elif param.is_meta:
        problem = "is on meta: give the model its memory first (to_empty)"
    elif param.layout is not torch.strided:
        problem = f"is {param.layout}, it must be dense"
    if problem:
        raise ValueError(f"shard_state: {label} {problem}")
