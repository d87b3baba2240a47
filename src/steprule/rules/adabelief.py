"""AdaBelief."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import maximum, sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.rules.radam import rectification


@rule(
    exp_avg_var=Slot(signed=False),
    max_exp_avg_var=Slot(
        signed=False,
        when="amsgrad",
        full_precision="a maximum over steps would keep the largest rounding errors",
    ),
    decoupled=True,
    source="Zhuang et al.: AdaBelief: adapting stepsizes by the belief in observed gradients, 2020",
)
def adabelief(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_var: Any,
    max_exp_avg_var: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    amsgrad: bool,
    rectify: bool,
) -> Any:
    """Return the update of :class:`AdaBelief`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    surprise = grad - exp_avg
    exp_avg_var = beta2 * exp_avg_var + (1 - beta2) * (surprise * surprise) + eps
    if amsgrad:
        max_exp_avg_var = maximum(max_exp_avg_var, exp_avg_var)
    root = sqrt(max_exp_avg_var if amsgrad else exp_avg_var)

    if rectify:
        is_tractable, factor = rectification(step, beta2)
        update = where(is_tractable, factor * (exp_avg / (root + eps)), exp_avg)
    else:
        update = exp_avg / (root / sqrt(correction2) + eps)
    return param - lr / correction1 * update, exp_avg, exp_avg_var, max_exp_avg_var


class AdaBelief(Optimizer):
    """AdaBelief: Adam that divides by how far gradients are from their average, not by their size.

    ::

        m = beta1 * m + (1 - beta1) * grad
        s = beta2 * s + (1 - beta2) * (grad - m)**2 + eps
        update = m / (1 - beta1**t)
        if rectify and not rho > 5 (see RAdam):  as it is
        else:  update = update * r / (sqrt(s / (1 - beta2**t)) + eps)      (r = 1 without rectify)
        param = param * (1 - lr * weight_decay) - lr * update

    With ``amsgrad`` the largest s so far stands in the denominator.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to s at every step and to the denominator, >= 0 (default 1e-16).
        weight_decay: decoupled decay (default 0).
        amsgrad: use the largest s so far.
        rectify: RAdam's warm-up: plain momentum until s can be trusted (default True).

    When to use: for convolutional networks and GANs, where it is often as good as SGD with
    momentum, from Adam's lr. Its state is AdamW's, its operations are about as many. The authors
    give each task an eps of its own: 1e-8 for images, 1e-16 for transformers. State in 4 bits is
    coarse for it, since m is taken from the gradient.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_var`` (s), ``max_exp_avg_var`` with amsgrad.

    Raises:
        ValueError: an option out of its range.

    Source: Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed
    gradients", 2020, algorithm 2, with the defaults of the authors' package (adabelief-pytorch
    0.2.1; ``rectify`` is no part of the paper). As there, eps is added to sqrt(s) before that is
    divided by sqrt(1 - beta2**t) where the step is rectified; unlike there, ``amsgrad`` counts
    then, too.
    """

    rule = adabelief

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-16,
        weight_decay: Number = 0.0,
        amsgrad: bool = False,
        rectify: bool = True,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
