"""Optimizers that train at one point and are evaluated at another, an average of where they were.

The parameters of a group in train mode are y, of which gradients are taken; in eval mode they are
x, the average. State has z: ``y = (1 - x_weight) * z + x_weight * x``. Three of these would be one
too many in memory; two say what the third is. But not to the last bit, so that in eval mode, when
there are no gradients, a copy of y is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from steprule.distributed.shards import local_of
from steprule.engines.uninterrupted import uninterrupted
from steprule.formats.floating import compute_dtype, real_view
from steprule.optimizer.averaging import count_change
from steprule.optimizer.base import Optimizer
from steprule.optimizer.options import check_flag
from steprule.optimizer.scheduled import SCHEDULES
from steprule.schedules import Schedule, checks
from steprule.state.storing import columns_in, format_in

#: The group's option that says whether its parameters are y.
TRAIN_MODE = "train_mode"
#: The slots of the rule that tell x, and what is kept while the parameters are x.
Z, X_WEIGHT, Y = "z", "x_weight", "y"

STEP_IN_EVAL_MODE = (
    "the optimizer is in eval mode, its parameters are averages, of which no step is taken: call "
    "optimizer.train() first, where model.train() is called (a state dict that was saved in eval "
    "mode is loaded in it)"
)


# At 0 the parameters are z, and at 1 they are x: they do not tell the other one.
_LOST = (
    "the parameters would not tell the average x from z any more. Let it fall to 0.1, say, or rise "
    "to 0.99"
)
# Up to where schedules are looked at: their last value is held for ever.
_SEEN_OF_SCHEDULES = [*range(1000), *(2**k for k in range(10, 41))]


class TrainEval(Optimizer):
    """Base of optimizers with a ``train()`` and an ``eval()``, and of those made of such."""

    def train(self) -> None:
        """Put the parameters where steps are taken: y, bit for bit as ``eval()`` found it.

        Parameters that were changed in eval mode are taken for the x they were changed to, and y
        follows. In train mode nothing is done.

        Where state is divided among ranks, every rank must call it.

        Raises:
            RuntimeError: this is within a block of ``optimizer.averaged()``.
        """
        self._change_mode(to_train=True)

    def eval(self) -> None:
        """Put the parameters at the averages x, to be evaluated or saved; steps are refused then.

        A copy of y is kept in the state (``"y"``) meanwhile, and saved with it. In eval mode
        nothing is done.

        Where state is divided among ranks, every rank must call it.

        Raises:
            RuntimeError: this is within a block of ``optimizer.averaged()``.
        """
        self._change_mode(to_train=False)

    def _change_mode(self, *, to_train: bool) -> None:
        name = "train" if to_train else "eval"
        if self._is_averaged:
            raise RuntimeError(
                f"the parameters are at their running averages, and will be put back: call "
                f"optimizer.{name}() after the block of optimizer.averaged()"
            )
        self._refuse_while_moved(name)
        groups = [g for g in self.param_groups if g.get(TRAIN_MODE, to_train) is not to_train]
        if not groups:
            return
        params = list(dict.fromkeys(p for group in groups for p in group["params"]))
        change = _put_back if to_train else _put_average
        undo: list[Callable[[], None]] = []
        with torch.no_grad(), uninterrupted:
            if self._owners is not None:
                self._owners.cover(self.param_groups)
            try:
                for param in params:
                    entry = self.state.get(param)
                    if entry:
                        undo.append(change(param, entry))
                if self._owners is not None:
                    self._owners.send(params, "train()" if to_train else "eval()")
            except BaseException:
                for put_back in reversed(undo):
                    put_back()
                raise
            for group in groups:
                group[TRAIN_MODE] = to_train
            self._let_go_of_plans()

    def _check_may_step(self) -> None:
        for i, group in enumerate(self.param_groups):
            check_in_train_mode(group, f"group {i}: ")

    def _step(self, closure: Callable[[], float] | None = None) -> float | None:
        self._check_may_step()
        return super()._step(closure)

    def _new_group(self, param_group: Mapping[str, Any], where: str, step: int) -> dict[str, Any]:
        return self._in_present_mode(super()._new_group(param_group, where, step), param_group)

    def _in_present_mode(self, group: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        """Return a new group in the mode of the others: new parameters are x, y and z at once."""
        modes = [g[TRAIN_MODE] for g in self.param_groups if TRAIN_MODE in g]
        if TRAIN_MODE in group and modes and TRAIN_MODE not in given:
            group[TRAIN_MODE] = modes[0]
        return group

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        super()._check_group(options, where)
        if TRAIN_MODE in options:
            check_flag(TRAIN_MODE, options[TRAIN_MODE], where)
            _check_scheduled_weight(options, where)

    def _check_scheduled(self, keys: Any, where: str) -> None:
        keys = list(keys)
        super()._check_scheduled(keys, where)
        if TRAIN_MODE in keys:
            raise TypeError(f"{where}{TRAIN_MODE} is a flag, not a number: it cannot be scheduled")


def check_in_train_mode(group: Mapping[str, Any], where: str) -> None:
    """Refuse a step of a group whose parameters are x, or would not tell x afterwards.

    Raises:
        RuntimeError: it is in eval mode.
        ValueError: the weight of x in y is none.
    """
    if TRAIN_MODE not in group:
        return
    if not group[TRAIN_MODE]:
        raise RuntimeError(STEP_IN_EVAL_MODE)
    name, weight = _weight_in(group)
    if isinstance(weight, Tensor):
        if not weight.is_cpu:  # which would be waited for
            return
        weight = weight.item()
    number = checks.real_number(weight)
    if number is None or not 0.0 < number < 1.0:
        raise ValueError(f"{where}{name} must be in (0, 1), got {weight!r}: {_LOST}")


def _weight_in(group: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the option that says how much of x is in y, by its name."""
    if "momentum" in group:
        return "momentum", group["momentum"]
    return "betas[0]", group["betas"][0]


def _check_scheduled_weight(group: Mapping[str, Any], where: str) -> None:
    """Refuse a schedule by which the weight of x would come to be none.

    Raises:
        ValueError: naming the value and its step.
    """
    found = group.get(SCHEDULES)
    for name in ("momentum", "betas[0]"):
        schedule = found.get(name) if isinstance(found, Mapping) else None
        if not isinstance(schedule, Schedule):
            continue
        try:
            values = schedule(_SEEN_OF_SCHEDULES)
        except (ArithmeticError, LookupError, TypeError, ValueError):
            continue  # a function of the user's that knows where it ends: its steps are looked at
        for step, value in zip(_SEEN_OF_SCHEDULES, values.tolist(), strict=True):
            if not 0.0 < value < 1.0:
                raise ValueError(
                    f"{where}{name} must be in (0, 1), and is {value:g} at step {step} of its "
                    f"schedule: {_LOST}"
                )


def _put_average(param: Tensor, entry: MutableMapping[str, Any]) -> Callable[[], None]:
    """Put x in a parameter's place and keep y; return what undoes that."""
    x = _average(param, entry, param)
    if x is None or Y in entry:
        return _nothing
    y = param.detach().clone()
    _write(param, x)
    entry[Y] = y

    def undo() -> None:
        _write(param, local_of(entry.pop(Y)))

    return undo


def _put_back(param: Tensor, entry: MutableMapping[str, Any]) -> Callable[[], None]:
    """Put y in a parameter's place; return what undoes that."""
    before, kept = param.detach().clone(), entry.get(Y)
    x = None if kept is None else _average(param, entry, kept)
    here = local_of(param)
    is_as_left = x is not None and torch.equal(here, x)
    if kept is not None and (is_as_left or torch.equal(here, local_of(kept))):
        _write(param, local_of(kept))
    elif X_WEIGHT in entry and Z in entry:
        weight = float(entry[X_WEIGHT])
        z = _read(Z, entry, param)
        x = real_view(here).to(compute_dtype(param))
        storage = format_in("param", {**entry, "param": param})
        columns = columns_in("param", {**entry, "param": param.detach()}, storage)
        storage.write(columns, x + (1 - weight) * (z - x))
        count_change(param)
    entry.pop(Y, None)

    def undo() -> None:
        _write(param, local_of(before))
        if kept is not None:
            entry[Y] = kept

    return undo


def _average(param: Tensor, entry: Mapping[str, Any], y: Tensor) -> Tensor | None:
    """Return the x that belongs to y, as the parameter stores it; None before the first step."""
    if Z not in entry or X_WEIGHT not in entry or float(entry[X_WEIGHT]) == 1.0:
        return None
    at_y = _read("param", {**entry, "param": y}, param)
    x = at_y + (1 - 1 / float(entry[X_WEIGHT])) * (_read(Z, entry, param) - at_y)
    made = torch.empty_like(local_of(param))
    real_view(made).copy_(x)
    return made


def _read(name: str, entry: Mapping[str, Any], param: Tensor) -> Tensor:
    storage = format_in(name, entry)
    columns = columns_in(name, entry, storage)
    return storage.read(columns, compute_dtype(param), local_of(param).shape)


def _write(param: Tensor, value: Tensor) -> None:
    local_of(param).copy_(value)
    count_change(param)


def _nothing() -> None:
    pass
