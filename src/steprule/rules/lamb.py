"""LAMB."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import norm_of, sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    source="You et al.: Large batch optimization for deep learning, 2020",
)
def lamb(
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
    weight_decay: Any,
) -> Any:
    """Return the update of :class:`LAMB`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)

    update = exp_avg / correction1 / (sqrt(exp_avg_sq / correction2) + eps)
    update = update + weight_decay * param
    weight_norm, update_norm = norm_of(param), norm_of(update)
    trust = where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
    return param - lr * trust * update, exp_avg, exp_avg_sq


class LAMB(Optimizer):
    """LAMB: Adam whose step, in each parameter, is as long as the parameter's own norm.

    ::

        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        u = (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps) + weight_decay * param
        param = param - lr * (|param| / |u|) * u           (lr * u where a norm is 0)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here. Biases and norms usually have a group without decay.
        lr: learning rate, relative to each parameter's norm (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-6).
        weight_decay: decay, part of the update that is scaled (default 0).

    When to use: batches of many thousands, as in pretraining with hundreds of devices: the
    trust ratio keeps layers from running away. It costs one reading of the elements more than
    AdamW; below a few thousand examples a batch it gains nothing.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v).

    Raises:
        ValueError: an option out of its range.

    Source: You, Li, Reddi, Hseu, Kumar, Bhojanapalli, Song, Demmel, Keutzer, Hsieh, "Large batch
    optimization for deep learning: training BERT in 76 minutes", 2020, algorithm 2, with phi the
    identity. Clip gradients by their global norm beforehand, as the paper does.
    """

    rule = lamb

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-6,
        weight_decay: Number = 0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
