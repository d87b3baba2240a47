"""Adan."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    previous_grad=Slot(full_precision="of a difference of gradients, 4 bits leave rounding alone"),
    source="Xie et al.: Adan: adaptive Nesterov momentum algorithm, 2022",
)
def adan(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    exp_avg_diff: Any,
    previous_grad: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    beta3: Any,
    eps: Any,
    weight_decay: Any,
    no_prox: bool,
) -> Any:
    """Return the update of :class:`Adan`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    correction3 = 1 - beta3**step

    diff = grad - where(step == 1, grad, previous_grad)
    ahead = grad + beta2 * diff
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_diff = beta2 * exp_avg_diff + (1 - beta2) * diff
    exp_avg_sq = beta3 * exp_avg_sq + (1 - beta3) * (ahead * ahead)

    denom = sqrt(exp_avg_sq) / sqrt(correction3) + eps
    update = (exp_avg / correction1 + beta2 / correction2 * exp_avg_diff) / denom
    if no_prox:
        param = param * (1 - lr * weight_decay) - lr * update
    else:
        param = (param - lr * update) / (1 + lr * weight_decay)
    return param, exp_avg, exp_avg_sq, exp_avg_diff, grad


class Adan(Optimizer):
    """Adan: Adam with a Nesterov momentum that is made of the gradient's changes.

    ::

        diff = grad - (grad of the step before)              (0 at the first step)
        m = beta1 * m + (1 - beta1) * grad
        d = beta2 * d + (1 - beta2) * diff
        v = beta3 * v + (1 - beta3) * (grad + beta2 * diff)**2
        update = m / (1 - beta1**t) + beta2 * d / (1 - beta2**t)
        update = update / (sqrt(v / (1 - beta3**t)) + eps)
        param = param - lr * update;  param = param / (1 + lr * weight_decay)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of m, d and v per step, each in [0, 1) (default (0.98, 0.92, 0.99)). The paper
            counts them from the other end: its beta is 1 less ours.
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: proximal decay, by which the updated parameter is divided: ``param / (1 + lr *
            weight_decay)`` (default 0).
        no_prox: decay as AdamW's instead: ``param * (1 - lr * weight_decay) - lr * update``.

    When to use: for vision transformers and diffusion models, and where large learning rates
    pay. It has twice AdamW's state. Start from 5 to 10 times AdamW's lr with a warm-up, and a
    weight decay of 0.02.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``exp_avg_diff`` (d),
    ``previous_grad``.

    Raises:
        ValueError: an option out of its range.

    Source: Xie, Zhou, Li, Lin, Yan, "Adan: adaptive Nesterov momentum algorithm for faster
    optimizing deep models", 2022, algorithm 1, as the authors' code has it (eps outside of the
    root). Their ``max_grad_norm`` is ``clip_grad_norm``; there are no restarts.
    """

    rule = adan

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number, Number] = (0.98, 0.92, 0.99),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        no_prox: bool = False,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
