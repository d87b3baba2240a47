"""Lion."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import rule
from steprule.ops import sign
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(decoupled=True, source="Chen et al.: Symbolic discovery of optimization algorithms, 2023")
def lion(param: Any, grad: Any, exp_avg: Any, *, lr: Any, beta1: Any, beta2: Any) -> Any:
    """Return the update of :class:`Lion`."""
    update = sign(beta1 * exp_avg + (1 - beta1) * grad)
    exp_avg = beta2 * exp_avg + (1 - beta2) * grad
    return param - lr * update, exp_avg


class Lion(Optimizer):
    """Lion: steps of equal size, by the sign of an average of gradients.

    ::

        param = param * (1 - lr * weight_decay) - lr * sign(beta1 * m + (1 - beta1) * grad)
        m = beta2 * m + (1 - beta2) * grad

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate, by which each element moves in a step (default 1e-4).
        betas: share of m in the step, and decay of m per step, each in [0, 1) (default
            (0.9, 0.99)).
        weight_decay: decoupled decay (default 0).

    When to use: where state must be small and batches are large: transformers for text and images.
    It has half of AdamW's state and fewer operations. Start from a tenth to a third of AdamW's lr,
    and a weight decay larger by as much.

    State: ``exp_avg`` (m).

    Raises:
        ValueError: an option out of its range.

    Source: Chen et al., "Symbolic discovery of optimization algorithms", 2023, algorithm 2; names
    and defaults are those of the authors' code and of lion-pytorch. A complex number is taken as
    two real ones, each with a sign of its own.
    """

    rule = lion

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
