"""One optimizer made of several, each for some of the groups."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from steprule.language.guards import GUARDS
from steprule.optimizer.base import Optimizer
from steprule.optimizer.options import suggestion
from steprule.optimizer.param_groups import check_against_others
from steprule.optimizer.scheduled import replace_schedule, steps_seen
from steprule.optimizer.shared_options import Guards
from steprule.optimizer.train_eval import TrainEval
from steprule.planning.settings import KIND, Kind
from steprule.schedules import Schedule


class Combined(TrainEval):
    """What :func:`combine` returns: every group names the class that updates it.

    ``train()`` and ``eval()`` are of those groups whose class has them; of none, they do nothing.

    Attributes:
        param_groups: as of any optimizer; ``group["optimizer"]`` is the name of a class.
    """

    _members: dict[str, Optimizer]

    def __init__(self, *optimizers: Optimizer, **shared: Unpack[Guards]) -> None:
        torch._C._log_api_usage_once("python.optimizer")
        _check_optimizers(optimizers)
        for name in shared:
            if name not in GUARDS:
                raise TypeError(
                    f"combine() got an unexpected keyword argument {name!r}"
                    f"{suggestion(name, GUARDS)}: other options belong to one of the optimizers"
                )
        # Templates: what checks and completes groups that are added later.
        self._members = {}
        for one in optimizers:
            self._members.setdefault(type(one).__name__, _without_groups(one))
        self.engine = optimizers[0].engine
        known = [one.defaults for one in optimizers]
        self.defaults = {
            key: value for key, value in known[0].items() if all(key in other for other in known)
        }
        self._fresh = set().union(*(one._fresh for one in optimizers))
        self._prepare()
        self.state: defaultdict[Tensor, Any] = defaultdict(dict)
        self.param_groups: list[dict[str, Any]] = []
        for one in optimizers:
            for group in one.param_groups:
                where = f"group {len(self.param_groups)}: "
                taken = _with_shared(group, shared)
                one._check_group({**one.extras, **taken}, where)
                check_against_others(taken, self.param_groups)
                self.param_groups.append({**taken, KIND: type(one).__name__})
            self.state.update({param: dict(entry) for param, entry in one.state.items()})

    def _new_group(self, param_group: Mapping[str, Any], where: str, step: int) -> dict[str, Any]:
        names = list(self._members)
        name = param_group.get(KIND, names[0] if len(names) == 1 else None)
        if name not in self._members:
            raise ValueError(
                f"{where}say which of the optimizers is to update it: the key {KIND!r} must be one "
                f"of {', '.join(map(repr, names))}, got {name!r}{suggestion(str(name), names)}"
            )
        own = {key: value for key, value in param_group.items() if key != KIND}
        group = {**self._members[name]._new_group(own, where, step), KIND: name}
        return self._in_present_mode(group, param_group)

    def _kinds(self) -> Mapping[str, Kind]:
        kinds = {name: one._kind_of({}) for name, one in self._members.items()}
        return {name: kind for name, kind in kinds.items() if kind is not None}

    def _kind_of(self, group: Mapping[str, Any]) -> Kind | None:
        kind = self._kinds().get(group[KIND])
        return None if kind is None else kind.of(group)

    def _known_options(self) -> set[str]:
        return {KIND}.union(*(one._known_options() for one in self._members.values()))

    def _check_loaded_kind(self, saved: Mapping[str, Any], index: int) -> None:
        mine = self.param_groups[index][KIND]
        theirs = saved.get(KIND, mine)
        if theirs != mine:
            raise ValueError(
                f"loaded state dict, group {index}: it was updated by {theirs}, the "
                f"optimizer's group is updated by {mine}"
            )
        super()._check_loaded_kind(saved, index)

    def _check_loaded(self, group: Mapping[str, Any], index: int) -> None:
        self._members[self.param_groups[index][KIND]]._check_loaded(group, index)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_members": self._members}


def combine(*optimizers: Optimizer, **shared: Unpack[Guards]) -> Combined:
    """Make one optimizer of several: one object for schedulers, scalers, clipping, checkpoints.

    ::

        hidden = [p for p in model.body.parameters() if p.ndim == 2]
        others = [p for p in model.parameters() if not any(p is h for h in hidden)]
        optimizer = steprule.combine(
            steprule.Muon(hidden, lr=0.02),
            steprule.AdamW(others, lr=3e-4),
            clip_grad_norm=1.0,
        )

    Its ``param_groups`` are theirs, one after the other, each with the name of its class under
    ``"optimizer"``; a group that is added names it, too. All step at once: guards look at the
    gradients of all groups, a step that is skipped is skipped by all. Its state dict has torch's
    keys, its ``defaults`` are those that all of them have.

    Args:
        optimizers: of this library, with a rule (LBFGS, which takes a closure several times, has
            none), on the same engine, and with no parameter in common. They are used up: step the
            one that is returned.
        **shared: guards (:class:`~steprule.optimizer.SharedOptions`) for all groups.

    Raises:
        TypeError: something that is none of ours, or has no rule.
        ValueError: no optimizer, other engines, a parameter that two of them have, or two classes
            of one name.
    """
    return Combined(*optimizers, **shared)


def _check_optimizers(optimizers: Sequence[Any]) -> None:
    if not optimizers:
        raise ValueError("combine() needs optimizers: combine(Muon(hidden), AdamW(others))")
    classes: dict[str, type] = {}
    for one in optimizers:
        name = type(one).__name__
        if not isinstance(one, Optimizer):
            if isinstance(getattr(one, "optimizer", None), torch.optim.Optimizer):
                raise TypeError(
                    f"combine() takes optimizers as they are, {name} goes round one: wrap what "
                    f"combine() returns, {name}(combine(...))"
                )
            where = "torch's" if isinstance(one, torch.optim.Optimizer) else "no optimizer"
            raise TypeError(f"combine() takes optimizers of steprule, {name} is {where}")
        if one._owners is not None:
            raise TypeError(
                f"combine() takes optimizers that have all of their state, that of {name} is "
                "divided among ranks: combine them first, then shard_state(combined)"
            )
        if one.rule is None:
            raise TypeError(f"combine() takes optimizers that have a rule, {name} has none")
        if classes.setdefault(name, type(one)) is not type(one):
            raise ValueError(f"combine() got two different classes named {name}: rename one")
        if one.engine != optimizers[0].engine:
            raise ValueError(
                f"combine() needs one engine, got {optimizers[0].engine!r} and {one.engine!r}"
            )


def _with_shared(group: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with options put in, which may be schedules beside those it has."""
    taken, step = {**group, **shared}, steps_seen([group])
    for name, value in shared.items():
        if isinstance(value, Schedule):
            replace_schedule(taken, name, value, step)
            taken[name] = value(step)
    return taken


def _without_groups(optimizer: Optimizer) -> Optimizer:
    """Return an optimizer of the same class and defaults that holds no parameters."""
    template = object.__new__(type(optimizer))
    template.__setstate__(
        {
            "defaults": optimizer.defaults,
            "state": defaultdict(dict),
            "param_groups": [],
            "engine": optimizer.engine,
            "_fresh": set(),
        }
    )
    return template
