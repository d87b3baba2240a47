"""QHAdam."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Range, Slot, rule
from steprule.ops import sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    ranges={"nus": Range(low=0.0, high=1.0)},
    parts={"nus": ("nu1", "nu2")},
    source="Ma, Yarats: Quasi-hyperbolic momentum and Adam for deep learning, 2019",
)
def qhadam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    nu1: Any,
    nu2: Any,
    eps: Any,
) -> Any:
    """Return the update of :class:`QHAdam`."""
    weight1 = (1 - beta1) / (1 - beta1**step)
    weight2 = (1 - beta2) / (1 - beta2**step)
    square = grad * grad

    exp_avg = (1 - weight1) * exp_avg + weight1 * grad
    exp_avg_sq = (1 - weight2) * exp_avg_sq + weight2 * square

    update = nu1 * exp_avg + (1 - nu1) * grad
    denom = sqrt(nu2 * exp_avg_sq + (1 - nu2) * square) + eps
    return param - lr * (update / denom), exp_avg, exp_avg_sq


class QHAdam(Optimizer):
    """QHAdam: Adam between its averages and the gradient at hand.

    ::

        w1 = (1 - beta1) / (1 - beta1**t);  w2 likewise
        m = (1 - w1) * m + w1 * grad
        v = (1 - w2) * v + w2 * grad**2
        update = nu1 * m + (1 - nu1) * grad
        param = param - lr * update / (sqrt(nu2 * v + (1 - nu2) * grad**2) + eps)

    With ``nus=(1, 1)`` it is Adam, with ``nus=(beta1, 1)`` nearly NAdam.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        nus: shares of the two averages beside the gradient and its square, each in [0, 1]
            (default (1.0, 1.0)).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: L2 penalty, or decoupled decay (default 0).

    When to use: in Adam's place where a long average is to count without its delay: the authors
    start from ``nus=(0.7, 1.0), betas=(0.995, 0.999)`` at Adam's lr. Its state is AdamW's,
    its operations are a third more.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), both free of bias as they stand.

    Raises:
        ValueError: an option out of its range.

    Source: Ma, Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", 2019, algorithm 2,
    with the names and defaults of the authors' package (qhoptim).
    """

    rule = qhadam

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        nus: tuple[Number, Number] = (1.0, 1.0),
        weight_decay: Number = 0.0,
        eps: Number = 1e-8,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
