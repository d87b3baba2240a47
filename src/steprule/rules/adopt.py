"""ADOPT."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Slot, rule
from steprule.ops import clip, maximum, sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    ranges={"clip_exp": NON_NEGATIVE},
    optional=("clip_exp",),
    source="Taniguchi et al.: ADOPT: modified Adam can converge with any beta2, 2024",
)
def adopt(
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
    clip_exp: Any,
) -> Any:
    """Return the update of :class:`ADOPT`."""
    is_first = step == 1
    bound = where(clip_exp == clip_exp, (step - 1) ** clip_exp, math.inf)  # None comes as nan
    beta2 = where(is_first, 0.0, beta2)

    normed = clip(grad / maximum(sqrt(exp_avg_sq), eps), -bound, bound)
    exp_avg = where(is_first, exp_avg, beta1 * exp_avg + (1 - beta1) * normed)
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)

    return where(is_first, param, param - lr * exp_avg), exp_avg, exp_avg_sq


class ADOPT(Optimizer):
    """ADOPT: Adam that converges with any beta2, by dividing by the second moment of before.

    ::

        u = clip(grad / max(sqrt(v), eps), (t - 1)**clip_exp)
        m = beta1 * m + (1 - beta1) * u
        v = beta2 * v + (1 - beta2) * grad**2
        param = param - lr * m

    The first step does no more than start v, at grad**2.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.9999)).
        eps: smallest denominator, >= 0 (default 1e-6).
        clip_exp: each element of u is at most ``(t - 1)**clip_exp``, >= 0 (default 0.25); None for
            no bound.
        weight_decay: L2 penalty, or decoupled decay (default 0).

    When to use: in Adam's place where it does not converge, or where beta2 can't be tuned, from
    Adam's lr. Its state is AdamW's, its operations are about as many; one step
    more is needed.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v).

    Raises:
        ValueError: an option out of its range.

    Source: Taniguchi et al., "ADOPT: modified Adam can converge with any beta2 with the optimal
    rate", 2024, algorithm 2, with the defaults of the authors' code, whose function ``clip_lambda``
    is an exponent here, as in timm. Decoupled decay shrinks the parameter at the first step, too.
    """

    rule = adopt

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.9999),
        eps: Number = 1e-6,
        clip_exp: Number | None = 0.25,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
