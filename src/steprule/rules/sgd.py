"""Stochastic gradient descent, with momentum in either of its two forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import FINITE, Slot, rule
from steprule.ops import where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    momentum_buffer=Slot(when="momentum", needs_every_step=True),
    ranges={"dampening": FINITE},
    sparse="rows",
    source="Sutskever, Martens, Dahl, Hinton: On the importance of initialization and momentum "
    "in deep learning, 2013",
)
def sgd(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    *,
    first: Any,
    lr: Any,
    momentum: Any,
    dampening: Any,
    nesterov: bool,
    classic_momentum: bool,
) -> Any:
    """Return the update of :class:`SGD`."""
    if momentum_buffer is None:
        return param - lr * grad, None

    gain = where(first, 1.0, 1 - dampening)
    if classic_momentum:
        gain = lr * gain
    momentum_buffer = momentum * momentum_buffer + gain * grad

    if classic_momentum:
        update = lr * grad + momentum * momentum_buffer if nesterov else momentum_buffer
        return param - update, momentum_buffer
    update = grad + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * update, momentum_buffer


class SGD(Optimizer):
    """Stochastic gradient descent, optionally with momentum.

    ::

        b = momentum * b + (1 - dampening) * grad        (b = grad at the first step)
        param = param - lr * b                           (nesterov: lr * (grad + momentum * b))

    and with ``classic_momentum=True``, the form of Sutskever et al. and other frameworks::

        b = momentum * b + lr * (1 - dampening) * grad
        param = param - b                                (nesterov: lr * grad + momentum * b)

    With ``classic_momentum`` the steps differ only when ``lr`` changes: without it a new ``lr``
    applies at once to all that has gathered in b, with it only to gradients still to come.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        momentum: share of b kept from step to step, >= 0 (default 0: no state is kept).
        dampening: share of the gradient kept out of b, from the second step on (default 0).
        weight_decay: L2 penalty (default 0).
        nesterov: look ahead by the momentum; needs ``momentum > 0`` and no dampening.
        classic_momentum: put ``lr`` into b, as Sutskever et al. and other frameworks do (default
            False, as torch).

    When to use: convolutional networks with a good schedule, where it often generalizes best,
    and wherever memory counts: momentum is its only state. Start from lr=0.1 with momentum 0.9
    for networks with batch norm, and anneal it.

    State: ``momentum_buffer`` (b), where momentum is not 0.

    Raises:
        ValueError: an option out of its range; ``nesterov`` without momentum or with dampening.

    Source: Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum
    in deep learning", 2013. As in torch, b starts as the first gradient, undampened.
    """

    rule = sgd
    extras = {"classic_momentum": False}

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        momentum: Number = 0,
        dampening: Number = 0,
        weight_decay: Number = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
        classic_momentum: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        super()._check_group(options, where)
        if options["nesterov"] and (options["momentum"] <= 0 or options["dampening"] != 0):
            raise ValueError(
                f"{where}Nesterov momentum requires a momentum and zero dampening, got momentum="
                f"{options['momentum']} and dampening={options['dampening']}"
            )
