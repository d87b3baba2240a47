"""LRScheduler: what every class here shares, and what users subclass by writing `get_lr`."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Iterable
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch.optim import Optimizer
from torch.optim import lr_scheduler as torch_schedulers

from steprule.lr_scheduler import calls, groups
from steprule.lr_scheduler.groups import Rate
from steprule.lr_scheduler.torch_names import EPOCH_DEPRECATION_WARNING
from steprule.lr_scheduler.undoing import unchanged
from steprule.schedules import checks

_built = itertools.count()
# Of each scheduler alive: when it was built among all, and the lr and initial lr of each group
# then. Not among its attributes: two schedulers built alike are alike in those.
_found: WeakKeyDictionary[Any, tuple[int, list[float], list[float]]] = WeakKeyDictionary()

Verbose = bool | str | Callable[[str], object]


def found_by(scheduler: Any) -> tuple[int, list[float], list[float]] | None:
    """When a scheduler was built, counted among all, and the groups' lrs and initial lrs then."""
    return _found.get(scheduler) if _can_be_a_key(scheduler) else None


def _can_be_a_key(thing: Any) -> bool:
    """Tell whether it has a hash, which a subclass that writes `__eq__` alone has not."""
    return type(thing).__hash__ is not None


class LRScheduler(torch_schedulers._LRScheduler):
    """Base class: sets the lr of each of an optimizer's groups, once each `step()`.

    To write your own, subclass it and write `get_lr()`, which returns one lr for each group at
    `self.last_epoch` (0 when the scheduler is built). It may use `self.base_lrs`, the groups'
    present lr in `self.optimizer.param_groups`, and `self._is_initial`, true while building.

    It inherits from torch's class so that `isinstance` holds in other people's code, and so does
    each class here from torch's of the same name; everything they do is their own, and
    `optimizer.step` is not replaced.

    Args:
        optimizer: any `torch.optim.Optimizer`, or a wrapper that is one by inheritance.
        last_epoch: last epoch already run, -1 (default) for none. With k >= 0 the scheduler
            stands where k + 1 calls of `step()` bring a new one.
        verbose: True prints a line each time an lr changes; a function gets that line instead.
            "deprecated", the default in torch 2.2 to 2.6, means False.
        initial_lr: the lr at the very start, a number or one for each group; needed with
            `last_epoch >= 0` when the optimizer's state was not loaded.
        hold_on_skip: when True, `step()` does nothing if the optimizer has not stepped since the
            last call, as when a GradScaler skipped an overflow. Where steps cannot be seen (a
            wrapper that hides the optimizer it steps) the schedule goes on.

    Raises:
        TypeError: `optimizer` is not an optimizer.
        TypeError, ValueError: `last_epoch`, `initial_lr`, `verbose` or `hold_on_skip` is none.
        KeyError: `last_epoch >= 0` and a group does not know its `initial_lr`.
    """

    # Belongs to this run rather than to the schedule: neither saved nor loaded.
    _unsaved: ClassVar[frozenset[str]] = frozenset(
        (
            "optimizer",
            "verbose",
            "hold_on_skip",
            "_exact",
            "_inside",
            "_steps_seen",
            "_found_step",
        )
    )
    # Attributes that `keep` keeps together with the one named.
    _kept_with: ClassVar[dict[str, tuple[str, ...]]] = {}

    _get_lr_called_within_step = False
    _is_initial = False
    # Whether a composite drives this scheduler and so answers for the order of calls.
    _inside = False
    hold_on_skip = False
    verbose: Verbose = False
    base_lrs: list[Rate]
    last_epoch: int

    def __init__(
        self,
        optimizer: Optimizer,
        last_epoch: int = -1,
        verbose: Verbose = False,
        *,
        initial_lr: float | list[float] | None = None,
        hold_on_skip: bool = False,
    ) -> None:
        groups.check_optimizer(optimizer)
        last_epoch = checks.whole("last_epoch", last_epoch, low=-1)
        self._attach(optimizer, verbose, hold_on_skip)
        with groups.unchanged(optimizer):
            self._begin(optimizer, last_epoch, initial_lr)

    def _begin(
        self, optimizer: Optimizer, last_epoch: int, initial_lr: float | list[float] | None
    ) -> None:
        """Find each group's initial lr, and set the first lrs."""
        if initial_lr is not None:
            given = groups.rates("initial_lr", optimizer, initial_lr)
            for group, lr in zip(optimizer.param_groups, given, strict=True):
                group["initial_lr"] = lr
        for index, group in enumerate(optimizer.param_groups):
            if "initial_lr" in group:
                continue
            if last_epoch != -1:
                # The first sentence is torch's, which people's code may look for.
                raise KeyError(
                    f"param 'initial_lr' is not specified in param_groups[{index}] when resuming "
                    f"scheduler with last_epoch >= 0. It is {last_epoch}, which continues a run: "
                    "load the optimizer's state first, or pass initial_lr="
                )
            group["initial_lr"] = groups.copied(group["lr"])
        self.base_lrs = groups.held(optimizer, "initial_lr")
        self.last_epoch = last_epoch
        self._get_lr_called_within_step = self._is_initial = False
        self._initial_step()

    def _attach(self, optimizer: Optimizer, verbose: Verbose, hold_on_skip: bool) -> None:
        groups.check_verbose(verbose)
        self.optimizer = optimizer
        self.verbose = False if verbose is None or verbose == "deprecated" else verbose
        self.hold_on_skip = checks.switch("hold_on_skip", hold_on_skip)
        self._exact: list[float] = []
        lrs = groups.read(optimizer, [])
        initial = groups.floats([g.get("initial_lr", g["lr"]) for g in optimizer.param_groups])
        if _can_be_a_key(self):
            _found[self] = (next(_built), lrs, initial)
        self._watch()

    def _watch(self) -> None:
        """See the optimizer's steps from now on."""
        calls.watch(self.optimizer, count=self.hold_on_skip)
        self._steps_seen = calls.steps_taken(self.optimizer)
        self._found_step = calls.what_steps(self.optimizer)

    def _initial_step(self) -> None:
        """Take the value at the present epoch + 1, without asking whether the optimizer stepped."""
        self._step_count = 0
        self._is_initial = True
        try:
            self.step()
        finally:
            self._is_initial = False

    # ---- stepping --------------------------------------------------------------------------
    @calls.out_of_graphs
    def step(self, epoch: int | None = None) -> None:
        """Go to the next epoch and set the lrs; call it after `optimizer.step()`.

        Args:
            epoch: deprecated; the epoch to go to, by the closed form where there is one.
        """
        if epoch is not None:
            groups.check_epoch(epoch)
        if not self._may_step(stacklevel=3):
            return
        self._step_count += 1
        if epoch is not None:
            warnings.warn(EPOCH_DEPRECATION_WARNING, UserWarning, stacklevel=3)
        self._update_lr(epoch)

    def _may_step(self, stacklevel: int) -> bool:
        """Check the order of calls; False when the schedule is to be held."""
        if self._is_initial or self._inside:
            return True
        if self.hold_on_skip:
            # Again, since a wrapper may hold another optimizer by now.
            calls.watch(self.optimizer, count=True)
            taken = calls.steps_taken(self.optimizer)
            if taken is not None and taken == self._steps_seen:
                return False
            self._steps_seen = taken
        elif self._step_count == 1:
            calls.warn_if_never_stepped(self.optimizer, self._found_step, stacklevel + 1)
        return True

    def _update_lr(self, epoch: int | None = None) -> None:
        if len(self.optimizer.param_groups) > len(self.base_lrs):
            self._adopt()
        before = self.last_epoch
        closed = None if epoch is None else getattr(self, "_get_closed_form_lr", None)
        self.last_epoch = before + 1 if epoch is None else epoch
        self._get_lr_called_within_step = True
        try:
            values = self.get_lr() if closed is None else closed()
        except BaseException as error:
            self.last_epoch = before
            if isinstance(error, TypeError):
                groups.say_which_is_none(type(self).__name__, self.optimizer)
                self._say_what_is_no_number(before + 1 if epoch is None else epoch)
            raise
        finally:
            self._get_lr_called_within_step = False
        if not isinstance(values, list):
            if not isinstance(values, Iterable):
                self.last_epoch = before
                raise TypeError(
                    f"{type(self).__name__}.get_lr() must return one lr for each group, got "
                    f"{values!r}"
                )
            values = list(values)
        self._set(values)

    def _say_what_is_no_number(self, epoch: Any) -> None:
        """Raise, by name, if a function of the user's is why the lr at `epoch` has no number."""

    def _set(self, values: list[Any]) -> None:
        """Give the groups these lrs."""
        old = groups.read(self.optimizer, []) if self.verbose else []
        self._last_lr, self._exact = groups.write(self.optimizer, values)
        if self.verbose:
            self._report(old)

    def _report(self, old: list[float]) -> None:
        new = groups.read(self.optimizer, [])
        for index, (was, now) in enumerate(zip(old, new, strict=False)):
            if was != now:
                verb = "reducing" if was is not None and now < was else "raising"
                line = (
                    f"Epoch {self.last_epoch:5d}: {verb} learning rate of group {index} "
                    f"to {now:.4e}."
                )
                tell = self.verbose if callable(self.verbose) else print
                tell(line)

    def print_lr(self, is_verbose: Any, group: Any, lr: float, epoch: float | None = None) -> None:
        """Print a line as torch 2.5 and older do, for subclasses from then that call it."""
        if not is_verbose or is_verbose == "deprecated":
            return
        tell = is_verbose if callable(is_verbose) else print
        if epoch is None:
            tell(f"Adjusting learning rate of group {group} to {lr:.4e}.")
        else:
            number = ("%.2f" if isinstance(epoch, float) else "%.5d") % epoch
            tell(f"Epoch {number}: adjusting learning rate of group {group} to {lr:.4e}.")

    def _adopt(self) -> None:
        """Take in groups added since: the lr they came with is their initial lr."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            group.setdefault("initial_lr", groups.copied(group["lr"]))
            self.base_lrs.append(groups.copied(group["initial_lr"]))

    # ---- asking ----------------------------------------------------------------------------
    def get_last_lr(self) -> list[Rate]:
        """Return the lrs this scheduler set last, one for each group, in copies."""
        # A subclass with a step() of its own may never have written it down.
        last: list[Rate] | None = vars(self).get("_last_lr")
        return groups.held(self.optimizer) if last is None else groups.copied(last)

    def get_lr(self) -> list[Rate]:
        """Return the lr of each group at `self.last_epoch`; subclasses say which that is."""
        raise NotImplementedError(f"{type(self).__name__} must write get_lr()")

    def _refuse_to_be_asked(self, instead: str) -> None:
        """Refuse if the next lr is asked for where only `step()` knows it, rather than stand still.

        Args:
            instead: what to give to who asks so.
        """
        if self._get_lr_called_within_step:
            # torch's error, whose text is empty.
            raise NotImplementedError(
                f"{type(self).__name__} moves by step() alone: what asks get_lr() for the next lr, "
                f"as Ignite's LRScheduler does, would stand still. Give it {instead}"
            )

    # ---- saving and loading ----------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on, in plain types and copies, under torch's keys."""
        state = {
            key: groups.copied(value)
            for key, value in vars(self).items()
            if key not in self._unsaved
        }
        state["_current_lr"] = list(groups.read(self.optimizer, self._exact))
        return state

    def load_state_dict(self, state_dict: dict[str, Any], *, keep: Iterable[str] = ()) -> None:
        """Go on from a state saved here or by torch, and set the lr that was in force.

        The order of building and loading optimizer and scheduler does not matter.

        Args:
            state_dict: from `state_dict()`; it is not changed.
            keep: attributes to keep as this scheduler was built instead of loading them, such as
                "T_max", "milestones", "total_steps" or "base_lrs"; the lr is then computed anew.
                "lr" leaves the optimizer's present lr alone.

        Raises:
            ValueError: a name in `keep` that this class does not have; or what is in `state_dict`
                makes no sense here. Nothing is changed then.
            TypeError: `state_dict` is no scheduler's, or `keep` holds no names.
        """
        groups.check_state(state_dict)
        kept = self._checked_keep(keep)
        with unchanged([self]):
            try:
                self._load_and_restore(state_dict, kept)
            except (ArithmeticError, AttributeError, LookupError, RuntimeError) as problem:
                raise ValueError(
                    f"state_dict is none of a {type(self).__name__} like this one: "
                    f"{type(problem).__name__}: {problem}"
                ) from problem

    def _load_and_restore(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        self._load(state_dict, kept)
        if "lr" in kept:
            return
        if kept and hasattr(self, "lr_at"):
            lrs = self.lr_at(self.last_epoch)
        else:
            lrs = state_dict.get("_current_lr") or state_dict.get("_last_lr") or []
        self._restore(lrs)

    def _checked_keep(self, keep: Iterable[str]) -> frozenset[str]:
        names = frozenset([keep] if isinstance(keep, str) else checks.listed("keep", keep))
        unknown = sorted(names - {"lr"} - vars(self).keys())
        if unknown:
            known = sorted(key for key in vars(self).keys() - self._unsaved if key[0] != "_")
            raise ValueError(
                f"keep: no {', '.join(unknown)} here; there are lr, {', '.join(known)}"
            )
        return names.union(*(self._kept_with.get(name, ()) for name in names))

    def _load(self, state_dict: dict[str, Any], kept: frozenset[str]) -> None:
        """Take over the saved attributes, leaving the optimizer as it is."""
        left_out = self._unsaved | kept | {"_current_lr"}
        for key, value in state_dict.items():
            if key not in left_out:
                vars(self)[key] = groups.copied(value)

    def _restore(self, lrs: list[Any]) -> None:
        """Bring the optimizer to where the loaded state was."""
        known = groups.held(self.optimizer)
        now, self._exact = groups.write(self.optimizer, [*lrs, *known[len(lrs) :]][: len(known)])
        self._last_lr = vars(self).get("_last_lr") or now

    def __getstate__(self) -> dict[str, Any]:
        left_out = ("_steps_seen", "_found_step")
        return {key: value for key, value in vars(self).items() if key not in left_out}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._watch()  # an optimizer drops its hooks when it is pickled or copied
