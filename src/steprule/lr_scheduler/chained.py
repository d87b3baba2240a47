"""ChainedScheduler: several schedulers at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.composite import ChainLike, advance, begin, enter, put_back
from steprule.lr_scheduler.pure import FactorLR
from steprule.schedules import Schedule, checks


class ChainedScheduler(ChainLike):
    """Step several schedulers together, each going on from what the one before it set.

    Any scheduler can be a member: ReduceLROnPlateau, SequentialLR and ChainedScheduler as well.
    With a plateau among them call `step(metric)`.

    Args:
        schedulers: the members, in the order they are stepped.
        optimizer: the optimizer of all members; default that of the first.
        verbose, hold_on_skip: as `LRScheduler`.

    Raises:
        ValueError: no members, or members of another optimizer.
        TypeError: a member is not a scheduler.
    """

    def __init__(
        self,
        schedulers: Sequence[Any],
        optimizer: Optimizer | None = None,
        *,
        verbose: Any = False,
        hold_on_skip: bool = False,
    ) -> None:
        schedulers = checks.listed("schedulers", schedulers)
        if len(schedulers) < 1:
            raise ValueError(
                "schedulers: ChainedScheduler expects at least one scheduler, got none"
            )
        if optimizer is None and not hasattr(schedulers[0], "optimizer"):
            raise TypeError(f"schedulers must be a list of schedulers, got {schedulers!r}")
        optimizer = schedulers[0].optimizer if optimizer is None else optimizer
        groups.check_optimizer(optimizer)
        assert optimizer is not None
        self._attach(optimizer, verbose, hold_on_skip)
        self._take(optimizer, schedulers)
        self._last_lr = groups.held(optimizer)

    def _start(self) -> None:
        for member in self._schedulers:
            begin(member)

    def _turn(self, metrics: Any) -> None:
        for member in self._schedulers:
            advance(member, metrics)

    def _update_lr(self, epoch: int | None = None) -> None:
        if epoch == 0:
            put_back(self)
            enter(self, None)
        else:
            self._turn(None)
            self._last_lr = groups.held(self.optimizer)

    def _pure(self, index: int) -> Schedule:
        if not all(isinstance(member, FactorLR) for member in self._schedulers):
            names = ", ".join(type(member).__name__ for member in self._schedulers)
            raise TypeError(f"a chain of {names} has no pure schedule: use lr_at(step)")
        first, *others = self._schedulers
        result: Schedule = first._pure(index, groups.floats(self.base_lrs)[index])
        for member in others:
            result = result * member._pure(index, 1.0)
        return result
