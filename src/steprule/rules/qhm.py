"""QHM."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import FINITE, FRACTION, rule
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    ranges={"momentum": FRACTION, "nu": FINITE},
    source="Ma, Yarats: Quasi-hyperbolic momentum and Adam for deep learning, 2019",
)
def qhm(param: Any, grad: Any, momentum_buffer: Any, *, lr: Any, momentum: Any, nu: Any) -> Any:
    """Return the update of :class:`QHM`."""
    momentum_buffer = momentum * momentum_buffer + (1 - momentum) * grad
    update = nu * momentum_buffer + (1 - nu) * grad
    return param - lr * update, momentum_buffer


class QHM(Optimizer):
    """QHM: stochastic gradient descent between a momentum and the gradient at hand.

    ::

        b = momentum * b + (1 - momentum) * grad
        param = param - lr * (nu * b + (1 - nu) * grad)

    With ``nu=1`` it is SGD with momentum at ``lr * (1 - momentum)``, with ``nu=momentum`` the same
    with Nesterov's.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3). SGD's, times 1 / (1 - momentum), for the
            gradient's share of b is damped here: ten times for a momentum of 0.9.
        momentum: decay of b per step, in [0, 1) (default 0.999). For state in 4 bits take less:
            so long a momentum is mostly rounding there.
        nu: share of b in the step (default 0.7).
        weight_decay: L2 penalty, or decoupled decay (default 0).

    When to use: in the place of SGD with momentum, where a long momentum is to count without its
    delay. It has half of AdamW's state and fewer operations. Start from ten times the lr that SGD
    has with a momentum of 0.9.

    State: ``momentum_buffer`` (b).

    Raises:
        ValueError: an option out of its range.

    Source: Ma, Yarats, "Quasi-hyperbolic momentum and Adam for deep learning", 2019, algorithm 1.
    The authors' package (qhoptim) has no defaults; those of momentum and nu are the paper's rule of
    thumb.
    """

    rule = qhm

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        momentum: Number = 0.999,
        nu: Number = 0.7,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
