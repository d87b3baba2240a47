"""Adadelta."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Range, Slot, rule
from steprule.ops import sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    square_avg=Slot(signed=False),
    acc_delta=Slot(signed=False),
    ranges={"rho": Range(low=0.0, high=1.0)},
    counts_steps=True,
    source="Zeiler: ADADELTA: an adaptive learning rate method, 2012",
)
def adadelta(
    param: Any, grad: Any, square_avg: Any, acc_delta: Any, *, lr: Any, rho: Any, eps: Any
) -> Any:
    """Return the update of :class:`Adadelta`."""
    square_avg = rho * square_avg + (1 - rho) * (grad * grad)

    delta = sqrt(acc_delta + eps) / sqrt(square_avg + eps) * grad
    acc_delta = rho * acc_delta + (1 - rho) * (delta * delta)
    return param - lr * delta, square_avg, acc_delta


class Adadelta(Optimizer):
    """Adadelta: steps in the units of the parameter, from running averages of squares.

    ::

        v = rho * v + (1 - rho) * grad**2
        delta = sqrt(u + eps) / sqrt(v + eps) * grad
        u = rho * u + (1 - rho) * delta**2
        param = param - lr * delta

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: scale of each step (default 1.0).
        rho: decay of the averages per step, in [0, 1] (default 0.9).
        eps: added under both roots, >= 0 (default 1e-6).
        weight_decay: L2 penalty (default 0).

    When to use: where no learning rate is known and none shall be sought: lr=1 is its natural
    scale. AdamW is nearly always better tuned; it is here for papers that used it.

    State: ``step``, ``square_avg`` (v), ``acc_delta`` (u).

    Raises:
        ValueError: an option out of its range.

    Source: Zeiler, "ADADELTA: an adaptive learning rate method", 2012, algorithm 1.
    """

    rule = adadelta

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1.0,
        rho: Number = 0.9,
        eps: Number = 1e-6,
        weight_decay: Number = 0,
        foreach: bool | None = None,
        *,
        capturable: bool = False,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
