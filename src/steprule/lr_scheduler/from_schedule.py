"""Any pure schedule as a scheduler object, for trainers that want one."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.base import Verbose
from steprule.lr_scheduler.pure import AbsoluteLR
from steprule.schedules import ParseError, Schedule, checks, parse


class ScheduleLR(AbsoluteLR):
    """What :func:`from_schedule` returns: sets each lr to a schedule's value at the epoch.

    Attributes:
        lr_schedules: one schedule for each group; a group added later follows the last one's.
        relative: whether their values are multiplied by the groups' initial lrs.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Schedule | str | Sequence[Schedule | str],
        *,
        relative: bool = False,
        last_epoch: int = -1,
        verbose: Verbose = False,
        initial_lr: float | list[float] | None = None,
        hold_on_skip: bool = False,
    ) -> None:
        groups.check_optimizer(optimizer)
        self.relative = checks.switch("relative", relative)
        given = groups.per_group("schedule", optimizer, schedule)
        self.lr_schedules: list[Schedule] = [_schedule_of(one) for one in given]
        is_one_for_all = not isinstance(schedule, (list, tuple))
        if is_one_for_all and not self.relative:
            _check_alike(optimizer, initial_lr)
        super().__init__(
            optimizer, last_epoch, verbose, initial_lr=initial_lr, hold_on_skip=hold_on_skip
        )

    def _closed(self, epoch: Any) -> list[float]:
        computed: dict[Schedule, float] = {}  # groups that share a schedule share its value
        values = []
        for base, schedule in zip(self._bases, self.lr_schedules, strict=False):
            if schedule not in computed:
                computed[schedule] = schedule(epoch)
            values.append(computed[schedule] * base if self.relative else computed[schedule])
        return values

    def _pure(self, index: int, base: float) -> Schedule:
        schedule = self.lr_schedules[index]
        return schedule * base if self.relative else schedule

    def _adopt(self) -> None:
        self._warn_of_others()
        super()._adopt()
        self._share_last()

    def _warn_of_others(self) -> None:
        """Warn of groups added since whose lr is none of those that the others began with."""
        if self.relative:
            return
        known = groups.floats([*self.base_lrs, *self.get_last_lr()])
        for index in range(len(self.base_lrs), len(self.optimizer.param_groups)):
            group = self.optimizer.param_groups[index]
            lr = groups.number(group.get("initial_lr", group["lr"]))
            if lr not in known:
                warnings.warn(
                    f"group {index} was added with lr {lr:g}, and now has the schedule's values "
                    "as the others have: pass relative=True for factors of each group's own lr",
                    UserWarning,
                    stacklevel=6,
                )

    def _share_last(self) -> None:
        missing = len(self.base_lrs) - len(self.lr_schedules)
        self.lr_schedules = [*self.lr_schedules, *self.lr_schedules[-1:] * missing]

    def state_dict(self) -> dict[str, Any]:
        """As the base class, with the schedules as plain types."""
        state = super().state_dict()
        state["lr_schedules"] = [schedule.to_json() for schedule in self.lr_schedules]
        return state

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        super()._load(state_dict, kept | {"lr_schedules"})
        if "lr_schedules" not in kept and "lr_schedules" in state_dict:
            saved = checks.listed("state_dict['lr_schedules']", state_dict["lr_schedules"])
            self.lr_schedules = [Schedule.from_json(one) for one in saved]
        self._share_last()


def from_schedule(
    optimizer: Optimizer,
    schedule: Schedule | str | Sequence[Schedule | str],
    *,
    relative: bool = False,
    last_epoch: int = -1,
    verbose: Verbose = False,
    initial_lr: float | list[float] | None = None,
    hold_on_skip: bool = False,
) -> ScheduleLR:
    """Make a scheduler object of a schedule, for trainers that want one.

    ::

        lr = schedule(epoch)                          (with relative: initial_lr * schedule(epoch))

    where ``epoch`` counts the calls of ``step()``, first 0: call it after each update for a
    schedule that counts updates. The object is an ``LRScheduler`` of torch and of steprule:
    ``get_last_lr()``, ``lr_at(step)``, ``state_dict()`` and the composites take it as any other.
    Where nobody asks for a scheduler none is needed: optimizers of steprule take the schedule
    itself, ``AdamW(params, lr=schedule)``.

    It writes the schedule's value into the groups at every step: a group that is added later has it
    too, whatever lr it came with (one that differs is warned of, without ``relative``), and what
    another scheduler makes of the lr, such as ``ReduceLROnPlateau``, lasts until the next step.

    Args:
        optimizer: any ``torch.optim.Optimizer``.
        schedule: what the lr is at each epoch: a schedule, its text
            (``"cosine(3e-4, 0, steps=1000).warmup(100)"``), or a list of one for each group.
        relative: take the values for factors of each group's initial lr, so that groups keep
            their proportions (layer-wise decay); default False.
        last_epoch: last epoch already run, -1 (default) for none.
        verbose: True prints a line each time an lr changes; a function gets that line instead.
        initial_lr: the lr at the very start, needed with ``last_epoch >= 0`` where the optimizer's
            state was not loaded.
        hold_on_skip: do nothing at a ``step()`` before which the optimizer has not stepped.

    Returns:
        The scheduler. Its state dict holds the schedules as plain types, and loading brings them
        back; ``load_state_dict(state, keep=["lr_schedules"])`` goes on with those given here.

    Raises:
        TypeError: no optimizer, or something that is no schedule.
        ValueError: not as many schedules as groups; text that can't be read; one schedule of
            absolute values for groups of different lrs, which it would make equal; an optimizer
            whose lr follows a schedule of its own.
        KeyError: ``last_epoch >= 0`` and a group does not know its ``initial_lr``.
    """
    return ScheduleLR(
        optimizer,
        schedule,
        relative=relative,
        last_epoch=last_epoch,
        verbose=verbose,
        initial_lr=initial_lr,
        hold_on_skip=hold_on_skip,
    )


def _schedule_of(given: Any) -> Schedule:
    if isinstance(given, str):
        try:
            return parse(given)
        except ParseError as error:
            raise ValueError(f"schedule: {error}") from None
    if isinstance(given, Schedule):
        return given
    how = "LambdaLR takes functions" if callable(given) else "constant(0.1) is one"
    raise TypeError(f"schedule must be a schedule of steprule.schedules, got {given!r}: {how}")


def _check_alike(optimizer: Optimizer, initial_lr: Any) -> None:
    """Refuse groups of different lrs, which one schedule of absolute values would make equal."""
    if initial_lr is not None:
        found = groups.floats(groups.rates("initial_lr", optimizer, initial_lr))
    else:
        found = groups.floats([g.get("initial_lr", g["lr"]) for g in optimizer.param_groups])
    if len(set(found)) > 1:
        shown = ", ".join(map(str, dict.fromkeys(found)))
        raise ValueError(
            f"schedule: the groups have different initial lrs ({shown}), and one schedule of "
            "absolute values would make them equal: pass relative=True and a schedule of factors "
            "(from 1), or a list of one schedule for each group"
        )
