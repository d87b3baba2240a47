"""Yogi."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Slot, rule
from steprule.ops import sign, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg=Slot(init="initial_accumulator"),
    exp_avg_sq=Slot(signed=False, init="initial_accumulator"),
    ranges={"initial_accumulator": NON_NEGATIVE},
    source="Zaheer et al.: Adaptive methods for nonconvex optimization, 2018",
)
def yogi(
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
) -> Any:
    """Return the update of :class:`Yogi`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    square = grad * grad

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = exp_avg_sq - (1 - beta2) * sign(exp_avg_sq - square) * square

    denom = sqrt(exp_avg_sq) / sqrt(correction2) + eps
    return param - lr / correction1 * (exp_avg / denom), exp_avg, exp_avg_sq


class Yogi(Optimizer):
    """Yogi: Adam whose second moment moves by steps of the gradient's square, however large it is.

    ::

        m = beta1 * m + (1 - beta1) * grad
        v = v - (1 - beta2) * sign(v - grad**2) * grad**2
        param = param - lr * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + eps)

    so that v falls slowly where gradients have become small: by their squares, where Adam's falls
    by a share of its own.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-2).
        betas: decay of m, and 1 less the share of grad**2, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-3).
        weight_decay: L2 penalty, or decoupled decay (default 0).
        initial_accumulator: what m and v are before the first step, >= 0 (default 1e-6).

    When to use: where gradients are rare or of very different sizes (embeddings, federated
    learning), and Adam's steps grow too large in between. Its state is AdamW's, its
    operations are about as many. Start from ten times Adam's lr, for eps is larger too.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v).

    Raises:
        ValueError: an option out of its range.

    Source: Zaheer, Reddi, Sachan, Kale, Kumar, "Adaptive methods for nonconvex optimization", 2018,
    algorithm 2. As in optax and pytorch-optimizer, whose defaults these are, both averages start at
    a small number and are corrected as Adam's, which the paper's are not (TensorFlow Addons starts
    m at 0). Gradients of 0 move parameters a little at first, therefore.
    """

    rule = yogi

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-3,
        weight_decay: Number = 0.0,
        initial_accumulator: float = 1e-6,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
