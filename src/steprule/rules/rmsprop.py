"""RMSprop."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Slot, rule
from steprule.ops import sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options

_DIFFERENCE = "centered: the root of square_avg - grad_avg**2, which rounding would make negative"


@rule(
    square_avg=Slot(signed=False, full_precision=_DIFFERENCE, precise_when="centered"),
    momentum_buffer=Slot(when="momentum"),
    grad_avg=Slot(when="centered", full_precision=_DIFFERENCE),
    ranges={"alpha": NON_NEGATIVE},
    counts_steps=True,
    source="Tieleman, Hinton: Lecture 6.5, RMSProp, 2012; centred: Graves: Generating sequences "
    "with recurrent neural networks, 2013",
)
def rmsprop(
    param: Any,
    grad: Any,
    square_avg: Any,
    momentum_buffer: Any,
    grad_avg: Any,
    *,
    lr: Any,
    alpha: Any,
    eps: Any,
    momentum: Any,
    centered: bool,
    eps_inside_sqrt: bool,
) -> Any:
    """Return the update of :class:`RMSprop`."""
    square_avg = alpha * square_avg + (1 - alpha) * (grad * grad)
    variance = square_avg
    if centered:
        grad_avg = alpha * grad_avg + (1 - alpha) * grad
        variance = square_avg - grad_avg * grad_avg

    denom = sqrt(variance + eps) if eps_inside_sqrt else sqrt(variance) + eps
    update = grad / denom
    if momentum_buffer is not None:
        momentum_buffer = momentum * momentum_buffer + update
        update = momentum_buffer
    return param - lr * update, square_avg, momentum_buffer, grad_avg


class RMSprop(Optimizer):
    """RMSprop: the gradient over the root of a running average of its square.

    ::

        v = alpha * v + (1 - alpha) * grad**2
        a = alpha * a + (1 - alpha) * grad                           (centered)
        update = grad / (sqrt(v) + eps)                              (centered: sqrt(v - a**2))
        b = momentum * b + update;  update = b                       (momentum)
        param = param - lr * update

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-2).
        alpha: decay of the averages per step, >= 0 (default 0.99).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: L2 penalty (default 0).
        momentum: share of the last update kept, >= 0 (default 0: no such state).
        centered: divide by an estimate of the standard deviation instead.
        eps_inside_sqrt: ``sqrt(v + eps)`` for the denominator, as TensorFlow has it.

    When to use: reinforcement learning and recurrent networks whose recipes name it. Start from
    lr=1e-3 or less; Adam is RMSprop with momentum and corrected averages.

    State: ``step``, ``square_avg`` (v), ``momentum_buffer`` (b) and ``grad_avg`` (a) where used.

    Raises:
        ValueError: an option out of its range.

    Source: Tieleman, Hinton, "Lecture 6.5: RMSProp", 2012; centred by Graves, "Generating
    sequences with recurrent neural networks", 2013.
    """

    rule = rmsprop
    extras = {"eps_inside_sqrt": False}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        alpha: Number = 0.99,
        eps: Number = 1e-8,
        weight_decay: Number = 0,
        momentum: Number = 0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        eps_inside_sqrt: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
