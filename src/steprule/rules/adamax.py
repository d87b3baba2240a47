"""Adamax."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import maximum
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_inf=Slot(signed=False),
    source="Kingma, Ba: Adam: a method for stochastic optimization, 2015, algorithm 2",
)
def adamax(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_inf: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
) -> Any:
    """Return the update of :class:`Adamax`."""
    correction = 1 - beta1**step

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_inf = maximum(beta2 * exp_inf, abs(grad) + eps)

    return param - lr / correction * (exp_avg / exp_inf), exp_avg, exp_inf


class Adamax(Optimizer):
    """Adamax: Adam with a decaying maximum of the gradient in place of the root mean square.

    ::

        m = beta1 * m + (1 - beta1) * grad
        u = max(beta2 * u, abs(grad) + eps)
        param = param - lr / (1 - beta1**t) * m / u

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 2e-3).
        betas: decay of m and of u per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the gradient's size, >= 0 (default 1e-8).
        weight_decay: L2 penalty (default 0).

    When to use: gradients that are now and then very large, as of embeddings: the maximum in
    its denominator remembers them longer. Start from twice Adam's lr.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_inf`` (u).

    Raises:
        ValueError: an option out of its range.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", 2015, algorithm 2.
    """

    rule = adamax

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 2e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
