"""ScheduleFreeSGD and ScheduleFreeAdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Range, Slot, rule
from steprule.ops import maximum, minimum, sqrt, where
from steprule.optimizer import Number, ParamsT, SharedOptionsBesideDecay, own_options
from steprule.optimizer.train_eval import TRAIN_MODE, TrainEval

_SOURCE = "Defazio et al.: The road less scheduled, 2024"
# At 0 the parameters are z, from which the average x cannot be told; at 1 they are x itself.
_INSIDE = Range(0.0, 1.0, low_included=False, high_included=False)
_Z = Slot(is_wide=True, full_precision="weights, which steps are taken of")
_SUM = Slot(shape="scalar", is_float64=True)
_X_WEIGHT = Slot(shape="scalar", init=1.0, is_float64=True)
_RANGES = {"warmup_steps": NON_NEGATIVE, "r": NON_NEGATIVE, "weight_lr_power": NON_NEGATIVE}


def _moved(
    y: Any,
    update: Any,
    z: Any,
    weight_sum: Any,
    lr_max: Any,
    x_weight: Any,
    *,
    step: Any,
    lr: Any,
    momentum: Any,
    warmup_steps: Any,
    r: Any,
    weight_lr_power: Any,
) -> Any:
    """Return y, z and the scalars after a step of z, with x kept implicitly.

    ``y = (1 - x_weight) * z + x_weight * x`` says what x is. The weight is kept, so that momentum
    may change from step to step without moving x.
    """
    lr = lr * minimum(step / maximum(warmup_steps, 1.0), 1.0)
    lr_max = maximum(lr_max, lr)
    weight = step**r * lr_max**weight_lr_power
    weight_sum = weight_sum + weight
    new = weight / where(weight_sum > 0, weight_sum, 1.0)

    kept = momentum * (1 - new)
    towards_z = 1 - kept / x_weight
    y = y + towards_z * (z - y) - lr * (1 - kept) * update
    return y, z - lr * update, weight_sum, lr_max, momentum


@rule(
    z=_Z,
    weight_sum=_SUM,
    lr_max=_SUM,
    x_weight=_X_WEIGHT,
    ranges={**_RANGES, "momentum": _INSIDE},
    averages_param=True,
    source=_SOURCE,
)
def schedule_free_sgd(
    param: Any,
    grad: Any,
    z: Any,
    weight_sum: Any,
    lr_max: Any,
    x_weight: Any,
    *,
    step: Any,
    first: Any,
    lr: Any,
    momentum: Any,
    weight_decay: Any,
    warmup_steps: Any,
    r: Any,
    weight_lr_power: Any,
) -> Any:
    """Return the update of :class:`ScheduleFreeSGD`."""
    z = where(first, param, z)
    return _moved(
        param,
        grad + weight_decay * param,
        z,
        weight_sum,
        lr_max,
        x_weight,
        step=step,
        lr=lr,
        momentum=momentum,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
    )


@rule(
    z=_Z,
    weight_sum=_SUM,
    lr_max=_SUM,
    x_weight=_X_WEIGHT,
    exp_avg_sq=Slot(signed=False),
    ranges={**_RANGES, "beta1": _INSIDE},
    averages_param=True,
    source=_SOURCE,
)
def schedule_free_adamw(
    param: Any,
    grad: Any,
    z: Any,
    exp_avg_sq: Any,
    weight_sum: Any,
    lr_max: Any,
    x_weight: Any,
    *,
    step: Any,
    first: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    weight_decay: Any,
    warmup_steps: Any,
    r: Any,
    weight_lr_power: Any,
) -> Any:
    """Return the update of :class:`ScheduleFreeAdamW`."""
    z = where(first, param, z)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)
    denom = sqrt(exp_avg_sq / (1 - beta2**step)) + eps
    y, z, *scalars = _moved(
        param,
        grad / denom + weight_decay * param,
        z,
        weight_sum,
        lr_max,
        x_weight,
        step=step,
        lr=lr,
        momentum=beta1,
        warmup_steps=warmup_steps,
        r=r,
        weight_lr_power=weight_lr_power,
    )
    return (y, z, exp_avg_sq, *scalars)


# What groups of the package schedulefree count for all of their parameters, and what they ask for
# that would be an engine here.
_THEIR_COUNTS = ("k", "weight_sum", "lr_max")
_THEIRS = (*_THEIR_COUNTS, "scheduled_lr", "foreach")


class _ScheduleFree(TrainEval):
    """Takes the state dicts of the package schedulefree, too."""

    def _prepared_load(self, state_dict: Any, **how: Any) -> Any:
        groups = state_dict.get("param_groups") if isinstance(state_dict, Mapping) else None
        is_theirs = isinstance(groups, list) and all(
            isinstance(group, Mapping) and group.keys() >= {*_THEIR_COUNTS} for group in groups
        )
        if is_theirs and any("silent_sgd_phase" in group for group in groups or ()):
            raise ValueError(
                f"the state dict is one of schedulefree's RAdamScheduleFree, not of "
                f"{type(self).__name__}: its steps are others, and z would not be this one's"
            )
        return super()._prepared_load(_as_ours(state_dict) if is_theirs else state_dict, **how)


def _as_ours(state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Return a state dict of schedulefree with what it counts by group in each entry."""
    groups, state = [], dict(state_dict["state"])
    for group in state_dict["param_groups"]:
        scalars = {
            "step": group["k"],
            "weight_sum": group["weight_sum"],
            "lr_max": max(group["lr_max"], 0.0),
            "x_weight": group["momentum"] if "momentum" in group else group["betas"][0],
        }
        for key in group["params"]:
            if "z" in state.get(key, ()):
                state[key] = {**state[key], **scalars}
        groups.append({key: value for key, value in group.items() if key not in _THEIRS})
    return {**state_dict, "state": state, "param_groups": groups}


class ScheduleFreeSGD(_ScheduleFree):
    """Schedule-free SGD: a running average of the weights takes the place of a schedule.

    ::

        eta = lr * min(1, t / warmup_steps);  w = t**r * max(eta so far)**weight_lr_power
        c = w / (sum of w so far)
        param = param + c * (z - param) - eta * (1 - momentum * (1 - c)) * grad
        z = z - eta * grad

    Said with y for the parameter and x for the average, ``x = (1 - c) * x + c * z`` and
    ``y = (1 - momentum) * z + momentum * x``. While training the parameters are y, of which
    gradients are taken. ``optimizer.eval()`` puts x in their place, which is the model to validate,
    save and ship; ``optimizer.train()`` puts y back bit for bit. Call both where ``model.eval()``
    and ``model.train()`` are called. Only steps are refused after ``eval()``, until ``train()`` is
    called; a new optimizer is in train mode.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1.0): larger than that of SGD with momentum and a schedule, of
            which 10 to 50 times is to be tried.
        momentum: how much of x is in y, inside (0, 1) (default 0.9). It may change during training,
            as under a one-cycle schedule, within these bounds.
        weight_decay: L2 penalty, on y (default 0).
        warmup_steps: steps over which lr rises from 0 (default 0).
        r: x is weighted by t**r (default 0.0).
        weight_lr_power: x is weighted by the largest lr so far to this power (default 2.0), so that
            steps of a warm-up count less.

    State: ``step`` (t), ``z`` (float32 for parameters of 16 bits, which need a ``param_rounding``
    for small steps), ``weight_sum`` (of w), ``lr_max`` (the largest eta), ``x_weight`` (the
    momentum by which y was made; 1 before the first step). x is not stored: it follows from y and
    z. While in eval mode ``y``, a copy.

    Groups: ``train_mode``, whether the parameters are y; saved and loaded, so that a run goes on in
    the mode in which it was saved.

    When to use: in place of SGD with momentum and a decaying schedule where the number of steps is
    not known in advance. It takes the memory of momentum; start from 10 times the lr of that, with
    a warm-up. Networks with batch norm need a forward pass over some training data after ``eval()``
    for running statistics at x.

    Raises:
        ValueError: an option out of its range; momentum also at a step, or as its schedule has it.
        RuntimeError: a step in eval mode, or a change of mode within ``optimizer.averaged()``.

    Source: Defazio, Yang, Mehta, Mishchenko, Khaled, Cutkosky, "The road less scheduled", 2024, as
    their package schedulefree 1.4.1 has it, except that a new optimizer is in train mode, that
    ``weight_sum`` and ``lr_max`` are kept for each parameter (t counts its own updates, where
    theirs counts the group's), and that a change of momentum does not move x. Their state dicts are
    taken, too; those of its RAdamScheduleFree are not.
    """

    rule = schedule_free_sgd

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1.0,
        momentum: Number = 0.9,
        weight_decay: Number = 0,
        warmup_steps: Number = 0,
        r: Number = 0.0,
        weight_lr_power: Number = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptionsBesideDecay],
    ) -> None:
        defaults = {**own_options(locals()), TRAIN_MODE: True}
        super().__init__(params, defaults, engine=engine)


class ScheduleFreeAdamW(_ScheduleFree):
    """Schedule-free AdamW: a running average of the weights takes the place of a schedule.

    ::

        v = beta2 * v + (1 - beta2) * grad**2
        u = grad / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * param
        param = param + c * (z - param) - eta * (1 - beta1 * (1 - c)) * u
        z = z - eta * u

    with eta and c as of :class:`ScheduleFreeSGD`.

    Said with y for the parameter and x for the average, ``x = (1 - c) * x + c * z`` and
    ``y = (1 - beta1) * z + beta1 * x``. :class:`ScheduleFreeSGD` says when to call
    ``optimizer.eval()`` and ``optimizer.train()``.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 0.0025).
        betas: how much of x is in y, inside (0, 1), and decay of v per step, in [0, 1) (default
            (0.9, 0.999)). The first one may change during training.
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: decoupled decay, of y (default 0).
        warmup_steps: steps over which lr rises from 0 (default 0).
        r: x is weighted by t**r (default 0.0).
        weight_lr_power: x is weighted by the largest lr so far to this power (default 2.0), so that
            steps of a warm-up count less.

    State: that of :class:`ScheduleFreeSGD`, and ``exp_avg_sq`` (v).

    Groups: ``train_mode``, as of :class:`ScheduleFreeSGD`.

    When to use: in place of AdamW with a decaying schedule where the number of steps is not known
    in advance, or a good model is wanted at any time. It takes AdamW's memory and time; start from
    1 to 10 times the lr of AdamW, with a warm-up, and beta1 of 0.95 or 0.98 for long runs.

    Raises:
        ValueError: an option out of its range.
        RuntimeError: a step in eval mode, or a change of mode within ``optimizer.averaged()``.

    Source: Defazio et al., "The road less scheduled", 2024, algorithm 1, as their package
    schedulefree 1.4.1 has it, with the departures of :class:`ScheduleFreeSGD`.
    """

    rule = schedule_free_adamw

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 0.0025,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        warmup_steps: Number = 0,
        r: Number = 0.0,
        weight_lr_power: Number = 2.0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptionsBesideDecay],
    ) -> None:
        defaults = {**own_options(locals()), TRAIN_MODE: True}
        super().__init__(params, defaults, engine=engine)
