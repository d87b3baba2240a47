"""MARS."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Slot, rule
from steprule.ops import maximum, norm_of, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    ranges={"gamma": NON_NEGATIVE},
    decoupled=True,
    source="Yuan et al.: MARS: unleashing the power of variance reduction, 2024",
)
def mars(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    last_grad: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    gamma: Any,
) -> Any:
    """Return the update of :class:`MARS`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    scale = gamma * beta1 / (1 - beta1)

    corrected = grad + scale * (grad - last_grad)
    corrected = corrected / maximum(norm_of(corrected), 1.0)
    exp_avg = beta1 * exp_avg + (1 - beta1) * corrected
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (corrected * corrected)

    denom = sqrt(exp_avg_sq) / sqrt(correction2) + eps
    return param - lr / correction1 * (exp_avg / denom), exp_avg, exp_avg_sq, grad


class MARS(Optimizer):
    """MARS: AdamW of gradients whose variance is reduced by the one before (MARS-AdamW).

    ::

        c = grad + gamma * beta1 / (1 - beta1) * (grad - (grad of the step before))
        c = c / max(1, |c|)                             (|c|: the norm over the parameter)
        m = beta1 * m + (1 - beta1) * c
        v = beta2 * v + (1 - beta2) * c**2
        update = (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)
        param = param * (1 - lr * weight_decay) - lr * update

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 3e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.95, 0.99)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: decoupled decay (default 0).
        gamma: how much of the correction is used, >= 0 (default 0.025; 0: AdamW of clipped
            gradients).

    When to use: for the matrices of language models trained with large batches. It has one and a
    half times AdamW's state, and one more pass over each parameter for the norm. Start from 3e-3
    with a warm-up.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``last_grad``.

    Raises:
        ValueError: an option out of its range.

    Source: Yuan, Liu, Wu, Zhou, Gu, "MARS: unleashing the power of variance reduction for training
    large models", 2024, algorithm 2, in its approximate form: the gradient before is of the batch
    before, and 0 at the first step. The authors' code gives parameters of one axis to AdamW unless
    ``optimize_1d``; here every parameter is updated as above: combine() it with AdamW for that.
    """

    rule = mars

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 3e-3,
        betas: tuple[Number, Number] = (0.95, 0.99),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        gamma: Number = 0.025,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
