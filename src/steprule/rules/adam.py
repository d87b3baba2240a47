"""Adam and AdamW."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import maximum, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptionsBesideDecay, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    max_exp_avg_sq=Slot(
        signed=False,
        when="amsgrad",
        full_precision="a maximum over steps would keep the largest rounding errors",
    ),
    source="Kingma, Ba: Adam: a method for stochastic optimization, 2015",
)
def adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    max_exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
    amsgrad: bool,
    eps_inside_sqrt: bool,
) -> Any:
    """Return the update of :class:`Adam` and :class:`AdamW`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)
    if amsgrad:
        max_exp_avg_sq = maximum(max_exp_avg_sq, exp_avg_sq)

    second_moment = max_exp_avg_sq if amsgrad else exp_avg_sq
    if eps_inside_sqrt:
        denom = sqrt(second_moment / correction2 + eps)
    else:
        denom = sqrt(second_moment) / sqrt(correction2) + eps
    param = param - lr / correction1 * (exp_avg / denom)
    return param, exp_avg, exp_avg_sq, max_exp_avg_sq


class Adam(Optimizer):
    """Adam: steps scaled by running averages of the gradient and of its square.

    ::

        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        param = param - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    With ``amsgrad`` the largest v so far stands in the denominator.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: L2 penalty, or decoupled decay (default 0).
        amsgrad: use the largest v so far (Reddi, Kale, Kumar 2018).
        decoupled_weight_decay: AdamW's form of the decay.
        eps_inside_sqrt: ``sqrt(v / (1 - beta2**t) + eps)`` for the denominator.

    When to use: the first choice where nothing is known, without weight decay or with an L2
    penalty meant as such. Start from lr=1e-3, 1e-4 to 3e-4 for transformers, with a warmup
    there; with weight decay, take :class:`AdamW`.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``max_exp_avg_sq`` with amsgrad.

    Raises:
        ValueError: an option out of its range.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", 2015, algorithm 1.
    """

    rule = adam
    extras = {"eps_inside_sqrt": False}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
        eps_inside_sqrt: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptionsBesideDecay],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)


class AdamW(Adam):
    """Adam with decoupled weight decay.

    ::

        param = param * (1 - lr * weight_decay)

    and then the step of :class:`Adam`, whose state it shares; ``weight_decay``
    is 1e-2 by default.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: decoupled decay (default 1e-2).
        amsgrad: use the largest v so far (Reddi, Kale, Kumar 2018).
        eps_inside_sqrt: ``sqrt(v / (1 - beta2**t) + eps)`` for the denominator.

    When to use: transformers and most other networks, and as the yardstick for whatever else is
    tried. Start from lr=3e-4 (1e-4 to 1e-3) with a warmup and a cosine, and leave biases and norms
    without decay (:func:`steprule.param_groups`).

    Raises:
        ValueError: an option out of its range.

    Source: Loshchilov, Hutter, "Decoupled weight decay regularization", 2019, algorithm 2. As in
    torch, the decay is multiplied by ``lr``.
    """

    fixed = {"decoupled_weight_decay": True}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        eps_inside_sqrt: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptionsBesideDecay],
    ) -> None:
        defaults = {**own_options(locals()), **self.fixed}
        Optimizer.__init__(self, params, defaults, engine=engine)
