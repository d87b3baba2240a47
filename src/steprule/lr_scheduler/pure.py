"""Schedulers whose lr is a function of the epoch: they can be asked about any epoch."""

from __future__ import annotations

from collections.abc import Sequence
from operator import is_
from typing import Any

from steprule.lr_scheduler import groups
from steprule.lr_scheduler.base import LRScheduler
from steprule.lr_scheduler.function_schedule import FunctionSchedule
from steprule.lr_scheduler.groups import Rate
from steprule.schedules import Schedule, checks


class PureLR(LRScheduler):
    """A scheduler with a closed form, chained with others as torch's recursion chains.

    While nobody else changes a group's lr it follows the closed form exactly, so errors do not
    add up over many steps. A group whose lr was changed, by hand or by a second scheduler, goes
    on from that lr by the ratio or difference torch applies. The two need no flag to be told
    apart: a group is on the closed form when its lr equals the closed form's last value.
    """

    # Shortcuts for the common case that nobody touched any lr since the last step: what was
    # written, whether the groups hold plain numbers, and what the closed form was computed from.
    _unsaved = LRScheduler._unsaved | {
        "_written",
        "_plain",
        "_plain_bases",
        "_ours",
        "_curve",
        "_curve_bases",
        "_computed",
    }
    _written: Sequence[Any] = ()
    _plain = False
    _curve: Any = None
    _curve_bases: Sequence[Any] = ()
    _plain_bases: Sequence[Any] = ()
    _ours: Any = None
    # The epoch whose lrs were computed last.
    _computed: int | None = None

    def _closed(self, epoch: Any) -> list[float]:
        """Return the lr of each group at `epoch`, as if nobody else had changed it."""
        raise NotImplementedError

    def _chain(self, lr: float, base: float, epoch: int) -> float:
        """Return the lr at `epoch` of a group that came to this epoch with `lr`.

        At epoch 0 that is `lr` itself where torch begins with it, and only while beginning: asked
        for by somebody who drives the scheduler from outside, torch takes a step there too.
        """
        raise NotImplementedError

    def _pure(self, index: int, base: float) -> Schedule:
        """Return the closed form of group `index` as a schedule, with `base` as its initial lr."""
        raise NotImplementedError

    @property
    def _bases(self) -> list[float]:
        # Comparing with the list seen last is cheaper than looking at every type again.
        if self.base_lrs != self._plain_bases:
            bases = groups.floats(self.base_lrs)
            if bases is not self.base_lrs:
                return bases
            self._plain_bases = list(bases)
        return self.base_lrs  # type: ignore[return-value]

    def lr_at(self, step: int) -> list[float]:
        """Return the lr of each group at an epoch, without side effects: what training there uses.

        Args:
            step: the epoch (calls of `step()` made before it), first 0.

        Raises:
            ValueError: `step` is negative or not whole.
        """
        return self._closed(checks.whole("step", step))

    @property
    def schedule(self) -> Schedule:
        """The first group's lr as a pure schedule."""
        return self.schedules[0]

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """Each group's lr as a pure schedule."""
        return tuple(self._written_down(index, base) for index, base in enumerate(self._bases))

    def _written_down(self, index: int, base: float) -> Schedule:
        try:
            return self._pure(index, base)
        except ValueError:
            # Numbers torch takes and the pure shapes do not, such as a T_max with a fraction.
            return FunctionSchedule(lambda epoch: self._closed(epoch)[index], 1.0)

    def get_lr(self) -> list[Rate]:
        """Return the lr of each group now in force; subclasses may build on it."""
        if self._only_asked():
            return groups.held(self.optimizer)
        self._computed = self.last_epoch
        rates = [group["lr"] for group in self.optimizer.param_groups]
        written = self._written
        untouched = len(rates) == len(written) and all(map(is_, rates, written))
        # What was written was plain; anything else is looked at.
        self._plain = untouched or groups.all_plain(rates)
        if untouched and self._still_on_curve():
            self._ours = self._closed(self.last_epoch)
            return self._ours  # type: ignore[no-any-return]
        lrs = rates if self._plain else groups.read(self.optimizer, self._exact)
        values = self._opening(lrs) if self._is_initial else self._next(lrs)
        self._note_curve(values if untouched or self._is_initial else None)
        return list(values)

    def _only_asked(self) -> bool:
        """Tell whether get_lr() is called to look at the lr, and not to take the next one.

        A subclass with a step() of its own, as people copied it from torch, moves `last_epoch`
        and then calls get_lr() for the lr there.
        """
        if self._get_lr_called_within_step:
            return False
        moved = self.last_epoch != self._computed
        return not moved or type(self).step.__module__.startswith("steprule.")

    def _key(self, epoch: int) -> Any:
        """Return what the closed form at `epoch` depends on besides the bases; None: do not ask."""
        return None

    def _still_on_curve(self) -> bool:
        """Tell whether all groups hold the closed form's last value, known without computing it."""
        return (
            self._curve is not None
            and self.last_epoch > 0  # there is no value before the first
            and self._curve == self._key(self.last_epoch - 1)
            and self._curve_bases == self.base_lrs
        )

    def _note_curve(self, values: list[float] | None) -> None:
        """Remember whether these values, about to be written, are the closed form's."""
        key = None if values is None else self._key(self.last_epoch)
        if key is None or not self._plain or values != self._closed(self.last_epoch):
            self._curve, self._curve_bases = None, []
        else:
            self._curve, self._curve_bases = key, list(self.base_lrs)

    def _set(self, values: list[Any]) -> None:
        plain = self._plain and (values is self._ours or groups.all_plain(values))
        self._ours = None
        if not plain or self.verbose:
            self._written = []
            super()._set(values)
            return
        for group, value in zip(self.optimizer.param_groups, values, strict=False):
            group["lr"] = value
        self._last_lr = self._written = values
        self._exact = []
        self._plain = False
        if self._curve is not None:
            self._curve = self._key(self.last_epoch)

    def _get_closed_form_lr(self) -> list[float]:
        return self._closed(self.last_epoch)

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        super()._load(state_dict, kept)
        self._computed = self.last_epoch

    def _restore(self, lrs: list[Any]) -> None:
        super()._restore(lrs)
        # As if these lrs had been written by a step, so that the next one takes the shortcuts.
        rates = [group["lr"] for group in self.optimizer.param_groups]
        self._plain = groups.all_plain(rates)
        self._written = rates if self._plain else []
        self._note_curve(rates if self.last_epoch >= 0 else None)
        self._plain = False

    def _opening(self, lrs: list[float]) -> list[float]:
        """Return the lrs to begin with: at epoch 0, or where a run is continued."""
        epoch = self.last_epoch
        if epoch <= 0:
            return self._next(lrs)
        # An lr the closed form had before or has now, or none yet, belongs to it. Any other was
        # changed by somebody else and stands.
        before, now = self._closed(epoch - 1), self._closed(epoch)
        return [
            new if lr in (base, old, new) else lr
            for lr, base, old, new in zip(lrs, self._bases, before, now, strict=False)
        ]

    def _next(self, lrs: list[float]) -> list[float]:
        epoch, bases = self.last_epoch, self._bases
        if epoch <= 0:
            return [self._chain(lr, base, epoch) for lr, base in zip(lrs, bases, strict=False)]
        return [
            new if lr == old else self._chain(lr, base, epoch)
            for lr, base, old, new in zip(
                lrs, bases, self._closed(epoch - 1), self._closed(epoch), strict=False
            )
        ]


class AbsoluteLR(PureLR):
    """A scheduler that sets each lr from its base, whatever stood there before."""

    def _next(self, lrs: list[float]) -> list[float]:
        return self._closed(self.last_epoch)

    _opening = _next


class FactorLR(PureLR):
    """A scheduler that multiplies: lr = base_lr * factor(epoch)."""

    def _factor(self, epoch: int) -> float:
        """Return the factor in closed form; `epoch` is at least 0."""
        raise NotImplementedError

    def _ratio(self, epoch: int) -> float:
        """Return what a changed lr is multiplied by when `epoch` begins."""
        raise NotImplementedError

    def _key(self, epoch: int) -> float:
        return self._factor(epoch)

    def _closed(self, epoch: Any) -> list[float]:
        factor = self._factor(epoch)
        return [base * factor for base in self._bases]

    def _next(self, lrs: list[float]) -> list[float]:
        epoch = self.last_epoch
        ratio = self._ratio(epoch)
        if epoch <= 0:
            return list(lrs) if ratio == 1 else [lr * ratio for lr in lrs]
        old, new = self._factor(epoch - 1), self._factor(epoch)
        if old == new and ratio == 1:
            return list(lrs)
        return [
            base * new if lr == base * old else lr * ratio
            for lr, base in zip(lrs, self._bases, strict=False)
        ]
