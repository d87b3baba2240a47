"""LARS."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, rule
from steprule.ops import norm_of, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    ranges={"trust_coefficient": NON_NEGATIVE},
    source="You, Gitman, Ginsburg: Large batch training of convolutional networks, 2017",
)
def lars(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    *,
    lr: Any,
    momentum: Any,
    weight_decay: Any,
    trust_coefficient: Any,
    eps: Any,
    nesterov: bool,
) -> Any:
    """Return the update of :class:`LARS`."""
    weight_norm, grad_norm = norm_of(param), norm_of(grad)
    trust = trust_coefficient * weight_norm / (grad_norm + weight_decay * weight_norm + eps)
    trust = where((weight_norm > 0) & (grad_norm > 0), trust, 1.0)

    update = trust * (grad + weight_decay * param)
    momentum_buffer = momentum * momentum_buffer + update
    direction = update + momentum * momentum_buffer if nesterov else momentum_buffer
    return param - lr * direction, momentum_buffer


class LARS(Optimizer):
    """LARS: momentum whose gradient, in each parameter, is scaled to the parameter's own norm.

    ::

        trust = trust_coefficient * |param| / (|grad| + weight_decay * |param| + eps)
        b = momentum * b + trust * (grad + weight_decay * param)    (trust = 1 where a norm is 0)
        param = param - lr * b

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here. Give biases and norms to SGD, as large-batch recipes do.
        lr: learning rate (default 1e-1).
        momentum: decay of b per step, >= 0 (default 0.9).
        weight_decay: L2 penalty, part of what is scaled (default 0).
        trust_coefficient: factor of the ratio of norms, >= 0 (default 1e-3).
        eps: added to the denominator, >= 0 (default 1e-8).
        nesterov: step along the scaled gradient + momentum * b (default False).

    When to use: convolutional networks with batches of many thousands, with a warmup. Start
    from lr scaled with the batch size, and leave biases and norms out by a group without decay.

    State: ``momentum_buffer`` (b).

    Raises:
        ValueError: an option out of its range.

    Source: You, Gitman, Ginsburg, "Large batch training of convolutional networks", 2017,
    algorithm 1. As in torch's SGD, lr multiplies b instead of what is added to it (they are the
    same while lr stays).
    """

    rule = lars

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-1,
        momentum: Number = 0.9,
        weight_decay: Number = 0,
        trust_coefficient: Number = 1e-3,
        eps: Number = 1e-8,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
