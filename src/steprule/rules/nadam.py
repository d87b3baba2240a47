"""NAdam."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Slot, rule
from steprule.ops import sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptionsBesideDecay, own_options


@rule(
    mu_product=Slot(shape="scalar", init=1.0),
    exp_avg_sq=Slot(signed=False),
    ranges={"momentum_decay": NON_NEGATIVE},
    source="Dozat: Incorporating Nesterov momentum into Adam, 2016",
)
def nadam(
    param: Any,
    grad: Any,
    mu_product: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    momentum_decay: Any,
) -> Any:
    """Return the update of :class:`NAdam`."""
    mu = beta1 * (1 - 0.5 * 0.96 ** (step * momentum_decay))
    mu_next = beta1 * (1 - 0.5 * 0.96 ** ((step + 1) * momentum_decay))
    mu_product = mu_product * mu
    correction2 = 1 - beta2**step
    grad_weight = lr * (1 - mu) / (1 - mu_product)
    momentum_weight = lr * mu_next / (1 - mu_product * mu_next)

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)

    denom = sqrt(exp_avg_sq / correction2) + eps
    param = param - grad_weight * (grad / denom) - momentum_weight * (exp_avg / denom)
    return param, mu_product, exp_avg, exp_avg_sq


class NAdam(Optimizer):
    """NAdam: Adam with Nesterov momentum.

    ::

        mu_t = beta1 * (1 - 0.5 * 0.96**(t * momentum_decay));  Pi_t = mu_1 * ... * mu_t
        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        step = (1 - mu_t) / (1 - Pi_t) * grad + mu_{t+1} / (1 - Pi_{t+1}) * m
        param = param - lr * step / (sqrt(v / (1 - beta2**t)) + eps)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 2e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: L2 penalty, or decoupled decay (default 0).
        momentum_decay: how fast mu grows towards beta1, >= 0 (default 4e-3).
        decoupled_weight_decay: AdamW's form of the decay.

    When to use: where Adam is used and a little faster progress early on is worth trying: its
    lr and betas carry over.

    State: ``step`` (t), ``mu_product`` (Pi), ``exp_avg`` (m), ``exp_avg_sq`` (v).

    Raises:
        ValueError: an option out of its range.

    Source: Dozat, "Incorporating Nesterov momentum into Adam", 2016.
    """

    rule = nadam

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        momentum_decay: Number = 4e-3,
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
