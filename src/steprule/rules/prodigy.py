"""Prodigy."""

from __future__ import annotations

import math
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Range, Slot, rule
from steprule.ops import dot_of, maximum, minimum, sqrt, sum_of, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.schedules import Schedule, checks

_POSITIVE = Range(low=0.0, low_included=False)


@rule(
    exp_avg_sq=Slot(signed=False),
    s=Slot(full_precision="the sum of its absolute values estimates d: errors would add to it"),
    p0=Slot(full_precision="the first weights, of which differences are taken"),
    d=Slot(shape="scalar", init="d0", is_float64=True),
    d_max=Slot(shape="scalar", init="d0", is_float64=True),
    d_numerator=Slot(shape="scalar", is_float64=True),
    ranges={
        "d0": _POSITIVE,
        "d_coef": _POSITIVE,
        "growth_rate": Range(low=1.0, is_finite=False),
    },
    source="Mishchenko, Defazio: Prodigy: an expeditiously adaptive parameter-free learner, 2024",
)
def prodigy(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    s: Any,
    p0: Any,
    d: Any,
    d_max: Any,
    d_numerator: Any,
    *,
    step: Any,
    first: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    beta3: Any,
    eps: Any,
    weight_decay: Any,
    d0: Any,
    d_coef: Any,
    growth_rate: Any,
    use_bias_correction: bool,
    safeguard_warmup: bool,
) -> Any:
    """Return the update of :class:`Prodigy`."""
    p0 = where(first, param, p0)
    dlr = d * lr
    if use_bias_correction:
        dlr = dlr * sqrt(1 - beta2**step) / (1 - beta1**step)

    exp_avg = beta1 * exp_avg + d * (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + d * d * (1 - beta2) * (grad * grad)
    s = beta3 * s + d / d0 * (d if safeguard_warmup else dlr) * grad

    d_numerator = beta3 * d_numerator + d / d0 * dlr * dot_of(grad, p0 - param, over="all")
    d_denominator = sum_of(abs(s), over="all")
    d_hat = where(d_denominator > 0, d_coef * d_numerator / d_denominator, d)
    d = where(d == d0, maximum(d, d_hat), d)
    d_max = maximum(d_max, d_hat)
    d = minimum(d_max, d * growth_rate)

    param = param * (1 - weight_decay * dlr) - dlr * exp_avg / (sqrt(exp_avg_sq) + d * eps)
    return param, exp_avg, exp_avg_sq, s, p0, d, d_max, d_numerator


class Prodigy(Optimizer):
    """Prodigy: Adam that finds its own learning rate, from how far it has come.

    ::

        m = beta1 * m + (1 - beta1) * d * grad
        v = beta2 * v + (1 - beta2) * (d * grad)**2
        r = beta3 * r + d / d0 * d * lr * <grad, p0 - param>          (over all parameters)
        s = beta3 * s + d / d0 * d * lr * grad
        d_new = max(d_max, d_coef * r / |s|_1), at most growth_rate * d
        param = param * (1 - weight_decay * d * lr) - d * lr * m / (sqrt(v) + d_new * eps)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: factor of the rate that is found (default 1.0: leave it, or let a schedule anneal it);
            the same in all groups.
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)). A third
            one, beta3, is added to the groups' ``betas``.
        beta3: decay of r and s; None, the default, for the square root of beta2.
        eps: added to the denominator, times d, >= 0 (default 1e-8).
        weight_decay: decoupled decay (default 0).
        use_bias_correction: Adam's corrections of the averages' start, in the rate.
        safeguard_warmup: leave lr out of s, so that a warm-up does not make d grow too far.
        d0: first guess of the distance to the solution, > 0 (default 1e-6).
        d_coef: factor of d, > 0 (default 1.0): the knob to turn, 0.5 to 2.
        growth_rate: d grows by at most this factor a step, >= 1 (default inf).

    When to use: fine-tuning and new problems, where nobody has searched for a learning rate:
    leave lr at 1 and anneal it by a cosine. It keeps twice AdamW's state, and reads elements
    twice.

    State: ``step``, ``exp_avg`` (m), ``exp_avg_sq`` (v), ``s``, ``p0`` (the first value), ``d``,
    ``d_max``, ``d_numerator`` (r): the last three the same in all parameters that had a gradient at
    every step.

    Raises:
        ValueError: an option out of its range.

    Source: Mishchenko, Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", 2024,
    algorithm 4, as its authors' package (prodigyopt 1.1.2) has it, except that a step whose
    gradients are all 0 decays the weights.
    """

    rule = prodigy

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1.0,
        betas: tuple[Number, Number] = (0.9, 0.999),
        beta3: Number | None = None,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        use_bias_correction: bool = False,
        safeguard_warmup: bool = False,
        d0: float = 1e-6,
        d_coef: Number = 1.0,
        growth_rate: Number = math.inf,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        options = own_options(locals())
        beta3 = options.pop("beta3")
        if isinstance(betas, (tuple, list)) and len(betas) == 2:
            options["betas"] = (*betas, _root(betas[1]) if beta3 is None else beta3)
        super().__init__(params, options, engine=engine)


def _root(beta2: Number) -> Number:
    start = beta2(0) if isinstance(beta2, Schedule) else beta2
    number = checks.real_number(start)
    # What is no number is refused by name, with the other betas.
    return start if number is None else math.sqrt(max(number, 0.0))
