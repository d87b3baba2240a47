"""What SequentialLR and ChainedScheduler share: members, their start, and their state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.optim.lr_scheduler as torch_schedulers
from torch.optim import Optimizer

from steprule.lr_scheduler import calls, groups
from steprule.lr_scheduler.base import LRScheduler
from steprule.lr_scheduler.groups import Rate
from steprule.lr_scheduler.momentum import MomentumLR, put_momentum, read_momentum
from steprule.lr_scheduler.pure import PureLR
from steprule.lr_scheduler.rehearsal import rehearse
from steprule.schedules import Schedule, checks


def wants_metrics(member: Any) -> bool:
    """Tell whether a step of `member` takes a metric, now or later."""
    if isinstance(member, CompositeLR):
        return any(wants_metrics(inner) for inner in member._schedulers)
    return isinstance(member, torch_schedulers.ReduceLROnPlateau)


def advance(member: Any, metrics: Any) -> None:
    """One step of a member, with the metric if it takes one."""
    member.step(metrics) if wants_metrics(member) else member.step()


def put_back(member: Any) -> None:
    """Stand a member before its first epoch, leaving the optimizer alone."""
    for inner in getattr(member, "_schedulers", ()):
        put_back(inner)
    if not isinstance(member, ChainLike):
        member.last_epoch = -1


def begin(member: Any) -> None:
    """Start a member at its epoch 0 from the lrs now in force."""
    put_back(member)
    member._initial_step()


class CompositeLR(LRScheduler):
    """A scheduler made of others on the same optimizer."""

    _unsaved = LRScheduler._unsaved | {"_schedulers"}
    _schedulers: list[Any]

    def _take(self, optimizer: Optimizer, schedulers: Sequence[Any]) -> None:
        """Check the members and answer for their order of calls from now on."""
        name = type(self).__name__
        for index, member in enumerate(schedulers):
            if not hasattr(member, "optimizer"):
                raise TypeError(
                    f"schedulers: {name} at index {index} should have `optimizer` as its "
                    f"attribute, got {member!r}"
                )
            if member.optimizer is not optimizer:
                raise ValueError(
                    f"schedulers: {name} expects all schedulers to belong to the same optimizer, "
                    f"but the {type(member).__name__} at index {index} has another one"
                )
        self._schedulers = list(schedulers)
        self._step_count = 1
        self.base_lrs = [
            groups.copied(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups
        ]
        for member in schedulers:
            if isinstance(member, LRScheduler):
                member._inside = True

    def _current(self) -> list[Any]:
        """Return the members that act now."""
        return self._schedulers

    def _start(self) -> None:
        """Start the members that act at epoch 0, from the lrs now in force."""
        raise NotImplementedError

    def _turn(self, metrics: Any) -> None:
        """One step, the order of calls being checked."""
        raise NotImplementedError

    @calls.out_of_graphs
    def step(self, metrics: Any = None) -> None:
        """Go to the next epoch; call it after `optimizer.step()`.

        Args:
            metrics: what a ReduceLROnPlateau among the members goes by; the others ignore it.
        """
        if not self._may_step(stacklevel=3):
            return
        old = groups.read(self.optimizer, []) if self.verbose else []
        self._step_count += 1
        self._turn(metrics)
        self._last_lr = groups.held(self.optimizer)
        if self.verbose:
            self._report(old)

    def _initial_step(self) -> None:
        self._step_count = 1
        self._start()
        self._last_lr = groups.held(self.optimizer)

    def get_lr(self) -> list[Rate]:
        """Return the lr of each group now in force.

        Raises:
            NotImplementedError: the next lr is asked for, as Ignite's LRScheduler does.
        """
        self._refuse_to_be_asked("from_schedule(optimizer, scheduler.schedule)")
        return groups.held(self.optimizer)

    # ---- asking about any epoch --------------------------------------------------------------
    def lr_at(self, step: int) -> list[float]:
        """Return the lr of each group at an epoch, found by rehearsing on a stand-in optimizer.

        It takes time in proportion to `step` and leaves this scheduler and its optimizer alone.

        Raises:
            TypeError: a member goes by a metric, so that the lr is no function of the step.
        """
        count = checks.whole("step", step)
        copy = self._fresh_copy()
        for _ in range(count):
            copy.step()
        return groups.read(copy.optimizer, [])

    def _fresh_copy(self) -> CompositeLR:
        """Return a copy at epoch 0 on a stand-in optimizer."""
        if wants_metrics(self):
            raise TypeError(
                f"{type(self).__name__} holds a ReduceLROnPlateau: its lr depends on the metrics "
                "and is no function of the step"
            )
        copy = rehearse(self)
        copy._inside = True
        copy.verbose = False
        groups.write(copy.optimizer, groups.floats(self.base_lrs))
        copy._initial_step()
        return copy

    @property
    def schedule(self) -> Schedule:
        """The first group's lr as a pure schedule."""
        return self._pure(0)

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """Each group's lr as a pure schedule."""
        return tuple(self._pure(index) for index in range(len(self.base_lrs)))

    def _pure(self, index: int) -> Schedule:
        raise NotImplementedError

    # ---- saving and loading --------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Return the state of each member, and of this scheduler itself."""
        state = super().state_dict()
        state["_schedulers"] = [member.state_dict() for member in self._schedulers]
        if any(isinstance(leaf, MomentumLR) for leaf in self._leaves()):
            # A member that is done leaves its last momentum behind, which no formula gives back.
            state["_current_momentum"] = [read_momentum(g) for g in self.optimizer.param_groups]
        return state

    def _checked_keep(self, keep: Any) -> frozenset[str]:
        names = frozenset([keep] if isinstance(keep, str) else checks.listed("keep", keep))
        known = {"lr"}.union(*(vars(leaf) for leaf in self._leaves()), vars(self))
        if unknown := sorted(names - known):
            raise ValueError(f"keep: no {', '.join(unknown)} in this scheduler or its members")
        return names

    def _leaves(self) -> list[Any]:
        leaves = []
        for member in self._schedulers:
            leaves += member._leaves() if isinstance(member, CompositeLR) else [member]
        return leaves

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        saved = state_dict.get("_schedulers", ())
        if len(saved) != len(self._schedulers):
            raise ValueError(
                f"state_dict holds {len(saved)} schedulers and this {type(self).__name__} has "
                f"{len(self._schedulers)}: build it from the same ones"
            )
        super()._load(state_dict, kept)
        for group, momentum in zip(
            self.optimizer.param_groups, vars(self).pop("_current_momentum", ()), strict=False
        ):
            put_momentum(group, momentum)
        for member, state in zip(self._schedulers, saved, strict=True):
            if not isinstance(member, LRScheduler):
                member.load_state_dict(state)
                continue
            names = kept if isinstance(member, CompositeLR) else kept & vars(member).keys()
            member._load(state, names.union(*(member._kept_with.get(n, ()) for n in names)))

    def _restore(self, lrs: list[Any]) -> None:
        for member in self._current():
            if isinstance(member, LRScheduler):
                member._restore([])
        super()._restore(lrs)


class ChainLike(CompositeLR):
    """A composite without an epoch of its own: it stands where its first member stands."""

    @property
    def last_epoch(self) -> int:  # type: ignore[override]
        """The epoch of the first member."""
        return int(self._schedulers[0].last_epoch)


def enter(member: Any, metrics: Any) -> None:
    """Let a member take over: at its own epoch 0, from the initial lr rather than the last one.

    That is what torch's `_update_lr(0)` does for every class with a closed form, carried over to
    the members torch refuses.
    """
    if isinstance(member, CompositeLR):
        begin(member)
        first = member._current()
        if first and isinstance(member, ChainLike):
            put_back(member)
            enter(first[0], None)
            for other in first[1:]:
                begin(other)
        elif first:
            enter(first[0], metrics)
        member._last_lr = groups.held(member.optimizer)
    elif wants_metrics(member):
        groups.write(member.optimizer, groups.floats(member.base_lrs))
        member._initial_step()
        if metrics is not None:
            member.step(metrics)
    else:
        member._update_lr(0)


def pure_member(member: Any, index: int, base: float) -> Schedule:
    """Return the schedule a member follows once it has taken over."""
    if isinstance(member, CompositeLR):
        return member._pure(index)
    if not isinstance(member, PureLR) or member._get_closed_form_lr is None:
        raise TypeError(
            f"{type(member).__name__} has no pure schedule: it goes on from the lr found"
        )
    return member._written_down(index, base)
