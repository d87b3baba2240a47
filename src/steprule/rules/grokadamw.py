"""GrokAdamW."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import FRACTION, NON_NEGATIVE, Range, Slot, rule
from steprule.ops import exp, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    ranges={
        "alpha_init": Range(low=0.0, high=1.0),
        "lamb": NON_NEGATIVE,
        "gamma": FRACTION,
        "layer": NON_NEGATIVE,
        "grokking_signal": NON_NEGATIVE,
        "grokking_signal_decay_rate": NON_NEGATIVE,
    },
    decoupled=True,
    source="Lee et al.: Grokfast: accelerated grokking by amplifying slow gradients, 2024",
)
def grokadamw(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    grok_ema: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    alpha_init: Any,
    lamb: Any,
    gamma: Any,
    layer: Any,
    grokking_signal: Any,
    grokking_signal_decay_rate: Any,
) -> Any:
    """Return the update of :class:`GrokAdamW`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    beta1 = beta1 * (1 - gamma) ** layer
    alpha = alpha_init * exp(-grokking_signal_decay_rate * grokking_signal)
    step_size = lr * sqrt(correction2) / correction1

    grok_ema = alpha * grok_ema + (1 - alpha) * grad
    amplified = grad + lamb * grok_ema
    exp_avg = beta1 * exp_avg + (1 - beta1) * amplified
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (amplified * amplified)

    return param - step_size * (exp_avg / (sqrt(exp_avg_sq) + eps)), exp_avg, exp_avg_sq, grok_ema


class GrokAdamW(Optimizer):
    """GrokAdamW: AdamW of gradients whose slow part is amplified.

    ::

        alpha = alpha_init * exp(-grokking_signal_decay_rate * grokking_signal)
        h = alpha * h + (1 - alpha) * grad
        amplified = grad + lamb * h
        b = beta1 * (1 - gamma)**layer
        m = b * m + (1 - b) * amplified
        v = beta2 * v + (1 - beta2) * amplified**2
        update = m / (1 - beta1**t) * sqrt(1 - beta2**t) / (sqrt(v) + eps)
        param = param * (1 - lr * weight_decay) - lr * update

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: decoupled decay (default 1e-2).
        alpha_init: decay of h, the slow part, per step, in [0, 1] (default 0.98).
        lamb: how much of h is added, >= 0 (default 2.0).
        gamma: by what share m's decay is smaller from layer to layer, in [0, 1) (default 0.1).
        layer: which layer a group is, from 0 (default 0): ``[{"params": layer.parameters(),
            "layer": i} for i, layer in enumerate(layers)]``.
        grokking_signal: how far the model has still to go from learning by heart to understanding,
            >= 0 (default 0): a number that you keep up to date in the groups, such as
            ``(eval_loss - train_loss) / eval_loss``, or a schedule.
        grokking_signal_decay_rate: how much the signal shortens h, >= 0 (default 0.1).

    When to use: where a model fits its training data long before it generalises (small
    algorithmic data sets). It has one and a half times AdamW's state. Start from AdamW's lr:
    amplified gradients are divided by their own size. State in 4 bits is coarse for it.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``grok_ema`` (h).

    Raises:
        ValueError: an option out of its range.

    Source: Hartford, "GrokAdamW", 2024 (the package grokadamw 0.1.2), after Lee, Kang, Kim, Lee,
    "Grokfast: accelerated grokking by amplifying slow gradients", 2024. There ``layer`` is the
    number of the parameter among those that have a gradient, the signal the mean of functions that
    it calls, and gradients are clipped as by ``clip_grad_norm=1.0, clip_grad_norm_over="param"``.
    """

    rule = grokadamw

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        alpha_init: Number = 0.98,
        lamb: Number = 2.0,
        gamma: Number = 0.1,
        layer: Number = 0,
        grokking_signal: Number = 0.0,
        grokking_signal_decay_rate: Number = 0.1,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
