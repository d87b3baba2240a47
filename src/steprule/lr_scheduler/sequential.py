"""SequentialLR: one scheduler after another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.base import found_by
from steprule.lr_scheduler.composite import (
    CompositeLR,
    advance,
    begin,
    enter,
    pure_member,
    put_back,
)
from steprule.lr_scheduler.momentum import MomentumLR, put_momentum, read_momentum
from steprule.lr_scheduler.pure import AbsoluteLR, PureLR
from steprule.schedules import Schedule, checks


class SequentialLR(CompositeLR):
    """Run schedulers one after another, each from its own epoch 0.

    Any scheduler can be a member: ReduceLROnPlateau, ChainedScheduler and SequentialLR as well.
    Where a plateau may be active call `step(metric)`; it takes over from the initial lr.

    Args:
        optimizer: the optimizer of all members.
        schedulers: the members, in the order they run.
        milestones: epochs where the next member takes over: one fewer than the members, whole,
            not negative, not falling.
        last_epoch: last epoch already run, -1 (default) for none.
        verbose, hold_on_skip: as `LRScheduler`.

    Raises:
        ValueError: no members, members of another optimizer, or milestones that do not fit.
        TypeError: a member is not a scheduler.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[Any],
        milestones: Sequence[int],
        last_epoch: int = -1,
        verbose: Any = False,
        *,
        hold_on_skip: bool = False,
    ) -> None:
        groups.check_optimizer(optimizer)
        schedulers = checks.listed("schedulers", schedulers)
        milestones = checks.listed("milestones", milestones)
        if len(schedulers) < 1:
            raise ValueError("schedulers: SequentialLR expects at least one scheduler, got none")
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"milestones must be one fewer than the {len(schedulers)} schedulers, got "
                f"{len(milestones)}: {milestones!r}"
            )
        self._milestones = [checks.whole("milestones", epoch) for epoch in milestones]
        if self._milestones != sorted(self._milestones):
            raise ValueError(f"milestones must not fall, got {milestones!r}")
        last_epoch = checks.whole("last_epoch", last_epoch, low=-1)
        self._attach(optimizer, verbose, hold_on_skip)
        self._take(optimizer, schedulers)
        self.last_epoch = last_epoch + 1
        if last_epoch == -1:
            self._begin_run()
        else:
            self._continue_run()
        self._last_lr = groups.held(optimizer)

    def _current(self) -> list[Any]:
        return [self._schedulers[bisect_right(self._milestones, max(self.last_epoch, 0))]]

    def _start(self) -> None:
        self.last_epoch = 0
        for member in self._schedulers:
            put_back(member)
        begin(self._current()[0])

    def _foreign(self, lrs: list[float]) -> list[bool]:
        """Which groups hold an lr that no member set: loaded, or changed by hand."""
        known = [groups.floats(self.base_lrs)]
        known += [groups.floats(getattr(member, "_last_lr", [])) for member in self._schedulers]
        return [
            all(lr != values[index] for values in known if index < len(values))
            for index, lr in enumerate(lrs)
        ]

    def _arrival(self) -> list[float]:
        """Return the lr to start from: the initial one, or what was set before the members."""
        bases = groups.floats(self.base_lrs)
        # A MomentumLR sets the group's lr and initial lr before it can look at them.
        seen = [
            found
            for leaf in self._leaves()
            if not isinstance(leaf, MomentumLR) and (found := found_by(leaf))
        ]
        if not seen:
            return bases
        _, lrs, initial = min(seen)
        known = zip(bases, lrs, initial, strict=False)
        arrived = [base if lr == first else lr for base, lr, first in known]
        return arrived + bases[len(arrived) :]  # groups added since

    def _begin_run(self) -> None:
        """Start as the active member alone would; building the others moved the lr."""
        found = groups.read(self.optimizer, [])
        foreign = self._foreign(found)
        bases = self._arrival()
        groups.write(
            self.optimizer,
            [lr if other else base for lr, base, other in zip(found, bases, foreign, strict=True)],
        )
        active = self._current()[0]
        if isinstance(active, PureLR) and not isinstance(active, AbsoluteLR):
            # A member built later may have set another initial lr, from which torch starts.
            active.base_lrs = [groups.copied(base) for base in self.base_lrs]
        self._start()
        if any(foreign):
            begun = groups.read(self.optimizer, [])
            groups.write(
                self.optimizer,
                [lr if o else new for lr, new, o in zip(found, begun, foreign, strict=True)],
            )

    def _continue_run(self) -> None:
        """Stand where a run from the start would stand after `last_epoch` steps."""
        found = groups.read(self.optimizer, [])
        foreign = self._foreign(found)
        target = self.last_epoch
        copy: Any = self._fresh_copy()
        before: list[float] = []
        for _ in range(target):
            before = groups.read(copy.optimizer, [])
            copy.step()
        now = groups.read(copy.optimizer, [])
        self._load(copy.state_dict(), frozenset())
        for group, stand in zip(
            self.optimizer.param_groups, copy.optimizer.param_groups, strict=True
        ):
            put_momentum(group, read_momentum(stand))
        groups.write(
            self.optimizer,
            [
                lr if other and lr not in (old, new) else new
                for lr, old, new, other in zip(found, before, now, foreign, strict=True)
            ],
        )

    def recursive_undo(self, sched: Any = None) -> None:
        """Take every member, at any depth, back by one epoch, as torch's does when it is built.

        Args:
            sched: the scheduler to take back with its members; default this one.
        """
        scheduler = self if sched is None else sched
        if hasattr(scheduler, "_schedulers"):
            for member in scheduler._schedulers:
                self.recursive_undo(member)
        elif hasattr(scheduler, "last_epoch"):
            scheduler.last_epoch -= 1

    def _turn(self, metrics: Any) -> None:
        self.last_epoch += 1
        index = bisect_right(self._milestones, self.last_epoch)
        member = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == self.last_epoch:
            enter(member, metrics)
        else:
            advance(member, metrics)

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch == 0:
            enter(self, None)
        else:
            self._turn(None)
            self._last_lr = groups.held(self.optimizer)

    def lr_at(self, step: int) -> list[float]:
        """Return the lr of each group at an epoch, without side effects.

        Raises:
            TypeError: it depends on metrics: the active member is a plateau.
        """
        epoch = checks.whole("step", step)
        index = bisect_right(self._milestones, epoch)
        member = self._schedulers[index]
        if isinstance(member, PureLR) and member._get_closed_form_lr is not None:
            return member.lr_at(epoch - (self._milestones[index - 1] if index else 0))
        return super().lr_at(step)

    def _pure(self, index: int) -> Schedule:
        base = groups.floats(self.base_lrs)[index]
        first = bisect_right(self._milestones, 0)
        result = self._member_schedule(first, index, base)
        for number in range(first + 1, len(self._schedulers)):
            if self._milestones[number - 1] in self._milestones[number:]:
                continue
            following = self._member_schedule(number, index, base)
            result = result.then(following, at=self._milestones[number - 1])
        return result

    def _member_schedule(self, number: int, index: int, base: float) -> Schedule:
        member = self._schedulers[number]
        own = groups.floats(member.base_lrs)[index] if hasattr(member, "base_lrs") else base
        return pure_member(member, index, own)
