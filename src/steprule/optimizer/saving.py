"""What an optimizer saves and loads: state dicts and files."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from steprule.checkpoints.file import opened
from steprule.checkpoints.on_ranks import save
from steprule.distributed import torch_checkpoints
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.choices import STORING, kept_storing
from steprule.language.averaging import AVERAGE
from steprule.language.rule import Rule
from steprule.optimizer.checkpoint_parts import lone_state_dict, optimizer_content
from steprule.optimizer.scheduled import (
    SCHEDULES,
    STEP,
    kept_options,
    packed_schedules,
    unpacked_schedules,
    with_kept,
)
from steprule.planning.owners import Owners, saved_by_first
from steprule.planning.settings import FLAGS, Kind
from steprule.schedules import checks
from steprule.state.copying import cast_state
from steprule.state.load_plan import Loader, LoadPlan
from steprule.state.loading import loaded_entry, plain_entry
from steprule.state.pairing import LoadReport, Rename
from steprule.state.recognition import COMMON, check_options_kind
from steprule.state.state_dict import StateDict, packed_state


class SavedOptimizer(torch.optim.Optimizer):
    """The part of :class:`~steprule.optimizer.base.Optimizer` that saves and loads."""

    rule: ClassVar[Rule | None] = None
    #: Options that torch's class has not, with their defaults; in a group only where given.
    extras: ClassVar[Mapping[str, Any]] = {}
    #: Options that loading a state dict never changes.
    fixed: ClassVar[Mapping[str, Any]] = {}
    #: Keys of the state, for classes without a rule: what a state dict is known by.
    state_keys: ClassVar[tuple[str, ...]] = ()

    engine: str
    _fresh: set[Tensor]
    _is_averaged: bool
    _owners: Owners | None
    _optimizer_state_dict_pre_hooks: OrderedDict[int, Callable[..., Any]]
    _optimizer_load_state_dict_pre_hooks: OrderedDict[int, Callable[..., Any]]

    def _kind_of(self, group: Mapping[str, Any]) -> Kind | None:
        """Return what updates a group; None if this class overrides ``step``."""
        raise NotImplementedError

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        """Check one group's options."""
        raise NotImplementedError

    def _let_go_of_plans(self) -> None:
        """Have the next step plan anew."""
        raise NotImplementedError

    def _sets_state_as_ours(self) -> bool:
        """Tell whether no class of the user's has a ``__setstate__`` of its own."""
        raise NotImplementedError

    def init_state(self) -> None:
        """Make the state of every parameter."""
        raise NotImplementedError

    def _is_asked_for_state(self) -> bool:
        """Tell whether a step is torch's way to have state made, for its checkpoints; make it then.

        Nothing else of that step is wanted: it would be counted, and be the first of a momentum.
        """
        if self.state or not torch_checkpoints.is_asking():
            return False
        with torch_checkpoints.own_lrs(self.param_groups):
            self.init_state()
        for param in [x for x in self.state if x.grad is None]:  # frozen ones
            del self.state[param]
            self._fresh.discard(param)
        return True

    def state_dict(self) -> StateDict:
        """Return the state in torch's format: ``state`` by parameter index, ``param_groups``.

        Where it is divided among ranks (:func:`steprule.shard_state`), every rank must call this,
        and gets the whole, as of one process; what others have it gets in copies.
        """
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        state: Mapping[Any, Any] = self.state
        # That a parameter was never updated is told by its having no state, as in torch.
        kinds = [(self._kind_of(group), group["params"]) for group in self.param_groups]
        untold = {
            p for kind, params in kinds if kind and "first" in kind.rule.needs for p in params
        }
        if untold and not torch_checkpoints.is_asking():  # which loads into what it is shown
            untold &= self._fresh
            state = {key: value for key, value in state.items() if key not in untold}
        if self._owners is not None:
            state = self._owners.whole_state(state, self.param_groups)
        packed = packed_state(map(packed_schedules, self.param_groups), state)
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            returned = post_hook(self, packed)
            if returned is not None:
                packed = returned
        return packed

    def torch_state_dict(self) -> StateDict:
        """Return the state dict as torch's optimizer of the same name would have written it.

        All state in plain tensors of each parameter's dtype, whatever the format it is stored in,
        and of the options those that torch's class has, with the numbers that are in force.
        Schedules and how far they are, running averages, and options that torch has not (guards,
        formats, caution) are left out: torch would carry them along without regard to them, and
        give them back as they were before its own steps. What the user put into a group stays.
        Loaded here again, each of them stays as it is in the optimizer that loads it.
        """
        packed = self.state_dict()
        params = [p for group in self.param_groups for p in group["params"]]
        kinds = [self._kind_of(g) for g in self.param_groups for _ in g["params"]]
        entries: dict[Any, Any] = dict(packed["state"])
        for i, (param, kind) in enumerate(zip(params, kinds, strict=True)):
            if kind is not None and isinstance(entries.get(i), Mapping):
                entries[i] = plain_entry(kind.rule, param, entries[i])
                entries[i].pop(AVERAGE, None)
        groups = []
        for present, group in zip(self.param_groups, packed["param_groups"], strict=True):
            kind = self._kind_of(present)
            ours = {*(self.extras if kind is None else kind.extras), *STORING, SCHEDULES, STEP}
            groups.append({key: value for key, value in group.items() if key not in ours})
        return {**packed, "state": entries, "param_groups": groups}

    def load_state_dict(  # type: ignore[override]  # torch's returns nothing
        self,
        state_dict: StateDict,
        *,
        strict: bool = True,
        keep: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> LoadReport:
        """Take over a state dict, of this class or of torch's class of the same name.

        Parameters are paired by name where both sides know names (``model.named_parameters()``),
        in whatever order and groups they are now, and else by position. State is copied, cast to
        each parameter's dtype and device, as torch does, or put into the format that this
        optimizer's groups ask for; how things are stored is not loaded.
        ``param_groups``, its dicts and ``state`` stay the same objects. Options that the state dict
        lacks keep the values they have; what else stands in a group (a scheduler's ``initial_lr``)
        does not.
        At the end ``__setstate__`` is called, as torch does, with what is then in force.

        Args:
            state_dict: what :meth:`state_dict` returned; it is not changed.
            strict: refuse parameters that one side lacks or that have another shape. With False
                what fits is loaded, and the rest told of in the report: state starts fresh, options
                of a group without a counterpart stay.
            keep: options that keep this optimizer's values (``"lr"``, schedules included).
            rename: what saved parameters are called now, where that has changed: a dict of old
                names to new ones, or a function.

        Returns:
            What did not fit.

        Raises:
            TypeError: not a state dict.
            ValueError: of another optimizer; other groups, parameters or shapes; a name in ``keep``
                or ``rename`` that there is not. Everything is checked before anything is changed.
        """
        prepared = self._prepared_load(state_dict, strict=strict, keep=keep, rename=rename)
        self._carry_out(prepared)
        return prepared.report

    def _prepared_load(
        self,
        state_dict: StateDict,
        *,
        strict: bool = True,
        keep: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> LoadPlan:
        """Check what is to be loaded; nothing is changed."""
        strict = checks.switch("strict", strict)
        if self._is_averaged:
            raise RuntimeError(
                "the parameters are at their running averages, what is loaded would be overwritten "
                "with what they were: load after the block of optimizer.averaged()"
            )
        state_dict = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            returned = pre_hook(self, state_dict)
            if returned is not None:
                state_dict = returned
        kept = kept_options(keep, self.param_groups, self._known_options())
        kinds = map(self._kind_of, self.param_groups)
        loader = Loader(
            kinds=[(type(self).__name__, None) if k is None else (k.name, k.rule) for k in kinds],
            merged=lambda group, saved: with_kept(self._loaded_group(group, saved), group, kept),
            entry=self._loaded_entry,
            check_group=self._check_loaded_kind,
            check_entry=self._check_loaded_entry,
            is_of_all=bool(self.state_keys),
        )
        try:
            plan = LoadPlan(self.param_groups, state_dict, loader, strict=strict, rename=rename)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError) as problem:
            raise ValueError(
                f"state_dict is none of a {type(self).__name__}: what is in it makes no sense "
                f"({type(problem).__name__}: {problem})"
            ) from problem
        for i, group in enumerate(plan.groups):
            unpacked = unpacked_schedules(group, f"loaded state dict, group {i}: ")
            self._check_loaded(unpacked, i)
            plan.groups[i] = unpacked
        if self._owners is not None:
            self._owners.cover(self.param_groups)
            plan.keep_only(self._owners.has)
        plan.look_at_files()
        return plan

    def _carry_out(self, prepared: LoadPlan) -> None:
        """Load what was checked.

        Where no class of the user's has a say any more, each entry takes the place of the old one
        as soon as it is made, so that there are never two states. Otherwise all is put back if
        that class refuses it.
        """
        self._let_go_of_plans()
        if self._sets_state_as_ours():
            self._replace_one_by_one(prepared)
        else:
            self._replace_or_keep(prepared)
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def _replace_one_by_one(self, prepared: LoadPlan) -> None:
        with uninterrupted:
            self._put_groups(prepared.groups)
            self._fresh.clear()
            for key in self.state.keys() - {*prepared.keys()}:
                del self.state[key]
            for key, entry in prepared.entries():
                self.state.pop(key, None)  # in the order in which they were saved
                self.state[key] = entry
            self.__setstate__({"state": self.state, "param_groups": self.param_groups})

    def _replace_or_keep(self, prepared: LoadPlan) -> None:
        state = dict(prepared.entries())
        kept = self.param_groups, self.state
        before = [dict(group) for group in self.param_groups], dict(self.state), set(self._fresh)
        try:
            self._put(prepared.groups, state, ())
            self.__setstate__({"state": self.state, "param_groups": self.param_groups})
        except BaseException:
            self.param_groups, self.state = kept
            self._put(*before)
            raise

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the state to a file, or leave the file as it is.

        As :func:`steprule.save_training`, which saves model and schedulers as well: safetensors
        without pickle, replaced as a whole, state in the formats that it has in memory. Where
        parameters are sharded over ranks, every rank must call it; each writes its own part beside
        the file. Where state is divided among ranks (:func:`steprule.shard_state`), every rank must
        call it, too; the first writes the file, as one process would.

        Args:
            path: the file; its folder must exist, on every rank the same one.

        Raises:
            TypeError: a group or the state has something that a checkpoint can't hold.
            OSError: the file can't be written. Both are raised on every rank if on any.
            RuntimeError: another rank is gone.
        """
        with saved_by_first([self]) as group:
            content = optimizer_content(self)
        save(path, content, {"optimizer": type(self).__name__}, group=group)

    def load(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = True,
        keep: Iterable[str] = (),
        rename: Rename | None = None,
    ) -> LoadReport:
        """Load the state from a file of :meth:`save` or :func:`steprule.save_training`.

        The file is mapped into memory: its tensors are copied one after the other.

        Args:
            path: the file.
            strict: as of :meth:`load_state_dict`.
            keep: likewise.
            rename: likewise.

        Returns:
            What did not fit.

        Raises:
            CheckpointError: no checkpoint, or damaged.
            TypeError, ValueError: as :meth:`load_state_dict`; nothing is changed then.
            OSError: the file can't be read.
        """
        with opened(path) as checkpoint:
            state_dict = lone_state_dict(checkpoint.content, path)
            # What was not asked for is not passed on: a subclass may know torch's arguments only.
            given = {"strict": strict, "keep": keep, "rename": rename}
            defaults = {"strict": True, "keep": (), "rename": None}
            asked = {key: x for key, x in given.items() if x != defaults[key]}
            return self.load_state_dict(state_dict, **asked)  # type: ignore[arg-type]

    def _put(
        self, groups: Sequence[dict[str, Any]], state: Mapping[Any, Any], fresh: Iterable[Tensor]
    ) -> None:
        """Replace what the groups, the state and the set of fresh parameters hold."""
        self._put_groups(groups)
        self.state.clear()
        self.state.update(state)
        self._fresh.clear()
        self._fresh.update(fresh)

    def _put_groups(self, groups: Sequence[dict[str, Any]]) -> None:
        for group, new in zip(self.param_groups, groups, strict=True):
            group.clear()
            group.update(new)

    def _known_options(self) -> set[str]:
        """Return the keys of a group that a state dict may lack: this optimizer's options."""
        rule = self.rule
        of_rule = () if rule is None else (*rule.options, *rule.flags, *FLAGS, "weight_decay", "lr")
        return {*self.defaults, *self.extras, *of_rule, SCHEDULES, STEP, "param_names"}

    def _loaded_entry(self, param: Tensor, entry: Any, group: Mapping[str, Any]) -> Any:
        """Return a parameter's loaded state as it is kept in its group."""
        kind = self._kind_of(group)
        if kind is None or not isinstance(entry, Mapping):
            return cast_state(param, entry, None, group)
        return loaded_entry(kind.rule, kind.options_of(group), param, entry)

    def _loaded_group(self, group: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a group is once a saved one has been loaded.

        Options that an older checkpoint does not know keep the values they have now. Nothing else
        does, for what a scheduler has left there would count for the next one: but for what asks
        for an engine, where this optimizer was told one by name, and how things are stored.
        """
        known = self._known_options()
        options = {key: value for key, value in group.items() if key in known}
        kind = self._kind_of(group)
        own = () if kind is None else (*kind.rule.options, *kind.rule.flags)
        kept, not_wanted = kept_storing(group, own) if kind is not None else ({}, frozenset())
        if self.engine != "auto":
            kept |= {name: group[name] for name in ("foreach", "fused") if name in group}
        merged = {**options, **saved, **self.fixed, **kept}
        return {key: value for key, value in merged.items() if key not in not_wanted}

    def _check_loaded_kind(self, saved: Mapping[str, Any], index: int) -> None:
        """Refuse a saved group of another optimizer, for the group at this index."""
        kind = self._kind_of(self.param_groups[index])
        if kind is not None:
            name, options, extras = kind.name, kind.rule.options, kind.extras
            slots: Collection[str] = kind.rule.slots
        elif self.state_keys:
            name, options, extras = type(self).__name__, (*self.defaults,), self.extras
            slots = self.state_keys
        else:  # a subclass with a step of its own may have renamed anything
            return
        own = [x for x in options if x not in extras and x not in COMMON]
        check_options_kind(name, own, slots, saved, index)

    def _check_loaded_entry(self, entry: Any, label: str) -> None:
        """Refuse a saved entry of another optimizer, where this one has no rule."""
        if self.state_keys and isinstance(entry, Mapping) and entry:
            missing = [key for key in self.state_keys if key not in entry]
            if missing:
                raise ValueError(
                    f"the state dict is not one of {type(self).__name__}: the state of {label} "
                    f"has {', '.join(map(repr, entry))} and lacks {', '.join(map(repr, missing))}"
                )

    def _check_loaded(self, group: Mapping[str, Any], index: int) -> None:
        self._check_group({**self.extras, **group}, f"loaded state dict, group {index}: ")
