"""RAdam."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptionsBesideDecay, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    source="Liu et al.: On the variance of the adaptive learning rate and beyond, 2020",
)
def radam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
) -> Any:
    """Return the update of :class:`RAdam`."""
    correction1 = 1 - beta1**step
    is_tractable, factor = rectification(step, beta2)

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)

    adapted = factor * (exp_avg / (sqrt(exp_avg_sq) + eps))
    update = where(is_tractable, adapted, exp_avg)
    return param - lr / correction1 * update, exp_avg, exp_avg_sq


def rectification(step: Any, beta2: Any) -> tuple[Any, Any]:
    """Return whether the second moment can be trusted yet, and what m / sqrt(v) is then times."""
    correction2 = 1 - beta2**step
    rho_inf = 2 / (1 - beta2) - 1
    rho = rho_inf - 2 * step * beta2**step / correction2
    is_tractable = rho > 5
    ratio = (rho - 4) * (rho - 2) * rho_inf
    scale = where(is_tractable, (rho_inf - 4) * (rho_inf - 2) * rho, 1.0)
    return is_tractable, sqrt(where(is_tractable, ratio / scale * correction2, 0.0))


class RAdam(Optimizer):
    """RAdam: Adam that starts as plain momentum until its second moment can be trusted.

    ::

        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        rho_inf = 2 / (1 - beta2) - 1;  rho = rho_inf - 2 * t * beta2**t / (1 - beta2**t)
        r = sqrt((rho - 4) (rho - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho))
        update = m / (1 - beta1**t)
        if rho > 5:  update = update * r * sqrt(1 - beta2**t) / (sqrt(v) + eps)
        param = param - lr * update

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: L2 penalty, or decoupled decay (default 0).
        decoupled_weight_decay: AdamW's form of the decay.

    When to use: where Adam wants a warmup and none is at hand: it takes plain momentum steps as
    long as its second moment is not to be trusted. Adam's lr and betas carry over.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v).

    Raises:
        ValueError: an option out of its range.

    Source: Liu, Jiang, He, Chen, Liu, Gao, Han, "On the variance of the adaptive learning rate
    and beyond", 2020, algorithm 2. As in torch, the threshold is 5 (paper: 4).
    """

    rule = radam

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        decoupled_weight_decay: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptionsBesideDecay],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
