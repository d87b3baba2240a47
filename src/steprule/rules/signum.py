"""Signum."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import FRACTION, Slot, rule
from steprule.ops import sign
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    momentum_buffer=Slot(when="momentum"),
    ranges={"momentum": FRACTION},
    decoupled=True,
    source="Bernstein et al.: signSGD: compressed optimisation for non-convex problems, 2018",
)
def signum(param: Any, grad: Any, momentum_buffer: Any, *, lr: Any, momentum: Any) -> Any:
    """Return the update of :class:`Signum`."""
    if momentum_buffer is None:
        return param - lr * sign(grad), None
    momentum_buffer = momentum * momentum_buffer + (1 - momentum) * grad
    return param - lr * sign(momentum_buffer), momentum_buffer


class Signum(Optimizer):
    """Signum: steps of equal size, by the sign of a momentum; without it, signSGD.

    ::

        b = momentum * b + (1 - momentum) * grad
        param = param * (1 - lr * weight_decay) - lr * sign(b)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate, by which each element moves in a step (default 1e-3).
        momentum: decay of b per step, in [0, 1) (default 0.9; 0: signSGD, no state is kept).
        weight_decay: decoupled decay (default 0).

    When to use: as a plain baseline for methods that go by signs, and where gradients have heavy
    tails. It has half of AdamW's state (none at all without momentum) and fewer operations. Start
    from a tenth to a third of AdamW's lr.

    State: ``momentum_buffer`` (b), where momentum is not 0.

    Raises:
        ValueError: an option out of its range.

    Source: Bernstein, Wang, Azizzadenesheli, Anandkumar, "signSGD: compressed optimisation for
    non-convex problems", 2018, algorithm 2 (one worker; the vote of several is no part of this);
    defaults are those of pytorch-optimizer's SignSGD. A complex number is taken as two real ones,
    each with a sign of its own.
    """

    rule = signum

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        momentum: Number = 0.9,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
