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
from steprule.distributed.shards import is_dtensor
from steprule.planning.rank_sums import RankSums, RefusedElsewhereError
from steprule.state.gathering import gathered_state
from steprule.state.labels import label_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

#: What all ranks do together beside steps.
Errand = Literal["state_dict()", "averaged()", "eval()", "train()"]
# What a rank that is on one says in the place of a refusal: more than there are ranks.
_ERRANDS: Mapping[Errand, float] = {
    "state_dict()": 2.0**20,
    "averaged()": 2.0**40,
    "eval()": 2.0**60,
    "train()": 2.0**80,
}
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

    def _refusal(self, refusals: float, *, is_first: bool) -> RefusedElsewhereError:
        if refusals < min(_ERRANDS.values()):
            return super()._refusal(refusals, is_first=is_first)
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

    def check_alike(self) -> None:
        """Refuse parameters that ranks don't have alike, to which every rank must come.

        Raises:
            ValueError: naming the first one.
        """
        import torch.distributed as dist

        own = [(tuple(p.shape), str(p.dtype), part.rank) for p, part in self.parts.items()]
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, own, self.group)
        first = everyone[0]
        for rank, other in enumerate(everyone):
            if len(other) != len(first):
                difference = f"{len(other)} parameters, rank 0 has {len(first)}"
            elif other != first:
                pairs = enumerate(zip(other, first, strict=True))
                i, one, of_first = next((i, a, b) for i, (a, b) in pairs if a != b)
                difference = f"parameter {i} of {_told(one)}, rank 0 has it of {_told(of_first)}"
            else:
                continue
            raise ValueError(
                "shard_state: ranks must have the same parameters in the same order, but rank "
                f"{rank} has {difference}"
            )

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

    def whole_state(
        self, own: Mapping[Any, Any], groups: Iterable[Mapping[str, Any]]
    ) -> dict[Any, Any]:
        """Return the state of all parameters; on others than the first rank not always.

        Raises:
            RuntimeError: other ranks do something else.
        """
        self.cover(groups)
        self.meeting.come_for("state_dict()")
        is_kept = self.rank == 0 or not self.is_for_first
        return gathered_state(own, self._params, self.group, self.exchange(), is_kept=is_kept)

    def exchange(self) -> ByteExchange:
        """Return what sends tensors to all ranks."""
        return ByteExchange(self.group, self._params[0].device)

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


@contextmanager
def saved_by_first(optimizers: Iterable[Any]) -> Iterator[ProcessGroup | None]:
    """Have the first rank alone put together state that is divided among ranks, to be saved.

    Yields:
        The ranks; None if nothing is divided.

    Raises:
        ValueError: several are divided, among other ranks each.
    """
    divided = [found for one in optimizers if (found := getattr(one, "_owners", None)) is not None]
    if any(one.group is not divided[0].group for one in divided):
        raise ValueError(
            "the state of several optimizers is divided among other ranks each: save them one by "
            "one"
        )
    for one in divided:
        one.is_for_first = True
    try:
        yield divided[0].group if divided else None
    finally:
        for one in divided:
            one.is_for_first = False


def _told(one: tuple[tuple[int, ...], str, int]) -> str:
    shape, dtype, owner = one
    return f"shape {shape} and {dtype} for rank {owner} to update"


def _elements(params: Iterable[Tensor]) -> int:
    return sum(param.numel() for param in params)


def check_dividable(group: Mapping[str, Any], index: int) -> None:
    """Refuse a group of parameters whose state can't be divided among ranks.

    Raises:
        ValueError: naming the parameter, and saying why.
    """
    if group.get("differentiable"):
        raise ValueError(
            f"shard_state: group {index} has differentiable=True, but no gradient goes through "
            "what other ranks have computed"
        )
    for position, param in enumerate(group["params"]):
        problem = _problem_of(param)
        if problem is not None:
            raise ValueError(f"shard_state: {label_of(group, index, position)} {problem}")


def _problem_of(param: Tensor) -> str | None:
    if is_dtensor(param):
        return "is a DTensor, whose state is divided among ranks as it is: step as usual"
    if param.is_meta:
        return "is on meta: give the model its memory first (to_empty)"
    if param.layout is not torch.strided:
        return f"is {param.layout}, it must be dense"
    return None
