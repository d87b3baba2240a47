"""Adagrad."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Slot, rule
from steprule.ops import sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    sum=Slot(signed=False, init="initial_accumulator_value"),
    ranges={"lr_decay": NON_NEGATIVE, "initial_accumulator_value": NON_NEGATIVE},
    sparse="rows",
    source="Duchi, Hazan, Singer: Adaptive subgradient methods for online learning and "
    "stochastic optimization, 2011",
)
def adagrad(
    param: Any,
    grad: Any,
    sum: Any,
    *,
    step: Any,
    lr: Any,
    lr_decay: Any,
    eps: Any,
    eps_inside_sqrt: bool,
) -> Any:
    """Return the update of :class:`Adagrad`."""
    step_size = lr / (1 + (step - 1) * lr_decay)

    sum = sum + grad * grad

    denom = sqrt(sum + eps) if eps_inside_sqrt else sqrt(sum) + eps
    return param - step_size * (grad / denom), sum


class Adagrad(Optimizer):
    """Adagrad: each element's step shrinks with the sum of its squared gradients.

    ::

        s = s + grad**2
        param = param - lr / (1 + (t - 1) * lr_decay) * grad / (sqrt(s) + eps)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-2).
        lr_decay: decay of the learning rate per step, >= 0 (default 0).
        weight_decay: L2 penalty (default 0).
        initial_accumulator_value: what s starts from, >= 0 (default 0).
        eps: added to the denominator, >= 0 (default 1e-10).
        eps_inside_sqrt: ``sqrt(s + eps)`` for the denominator.

    State, made with the optimizer as in torch: ``step`` (t), ``sum`` (s).

    When to use: sparse features and convex problems, such as embeddings of rare words and
    linear models. Steps only shrink, so that long runs of deep networks come to a halt.

    Raises:
        ValueError: an option out of its range.

    Source: Duchi, Hazan, Singer, "Adaptive subgradient methods for online learning and
    stochastic optimization", 2011.
    """

    rule = adagrad
    extras = {"eps_inside_sqrt": False}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        lr_decay: Number = 0,
        weight_decay: Number = 0,
        initial_accumulator_value: Number = 0,
        eps: Number = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        eps_inside_sqrt: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
        self.init_state()

    def share_memory(self) -> None:
        """Move the sums to shared memory, for training in several processes."""
        for entry in self.state.values():
            entry["sum"].share_memory_()
