"""LaProp."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    decoupled=True,
    source="Ziyin, Wang, Ueda: LaProp: separating momentum and adaptivity in Adam, 2020",
)
def laprop(
    param: Any,
    grad: Any,
    exp_avg_normed: Any,
    exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
) -> Any:
    """Return the update of :class:`LaProp`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step

    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)
    normed = grad / (sqrt(exp_avg_sq) / sqrt(correction2) + eps)
    exp_avg_normed = beta1 * exp_avg_normed + (1 - beta1) * normed
    return param - lr / correction1 * exp_avg_normed, exp_avg_normed, exp_avg_sq


class LaProp(Optimizer):
    """LaProp: momentum of gradients that have been divided by their second moment, not before it.

    ::

        v = beta2 * v + (1 - beta2) * grad**2
        m = beta1 * m + (1 - beta1) * grad / (sqrt(v / (1 - beta2**t)) + eps)
        param = param * (1 - lr * weight_decay) - lr * m / (1 - beta1**t)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 4e-4).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-15).
        weight_decay: decoupled decay (default 0).

    When to use: in Adam's place where a small beta2 or noisy gradients make it unstable: the betas
    may be chosen independently of each other. Its state is AdamW's, its operations are about as
    many. Start from AdamW's lr, or a little less.

    State: ``step`` (t), ``exp_avg_normed`` (m), ``exp_avg_sq`` (v).

    Raises:
        ValueError: an option out of its range.

    Source: Ziyin, Wang, Ueda, "LaProp: separating momentum and adaptivity in Adam", 2020, algorithm
    2, with the defaults of the authors' code. There m is called ``exp_avg`` and has lr within it,
    so that a change of lr counts from the gradients to come, and the decay follows the step. The
    centred form is no part of this.
    """

    rule = laprop

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 4e-4,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-15,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
