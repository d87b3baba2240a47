"""Averaged stochastic gradient descent."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import FINITE, Slot, rule
from steprule.ops import maximum, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    eta=Slot(shape="scalar", init="lr"),
    mu=Slot(shape="scalar", init=1.0),
    ax=Slot(full_precision="an average of weights, whose steps are smaller than a code"),
    averages_param=True,
    ranges={"lambd": FINITE, "alpha": FINITE, "t0": FINITE},
    source="Polyak, Juditsky: Acceleration of stochastic approximation by averaging, 1992",
)
def asgd(
    param: Any,
    grad: Any,
    eta: Any,
    mu: Any,
    ax: Any,
    *,
    step: Any,
    lr: Any,
    lambd: Any,
    alpha: Any,
    t0: Any,
) -> Any:
    """Return the update of :class:`ASGD`."""
    param = param * (1 - lambd * eta) - eta * grad
    ax = where(mu == 1, param, ax + mu * (param - ax))

    eta = lr / (1 + lambd * lr * step) ** alpha
    mu = 1 / maximum(step - t0, 1.0)
    return param, eta, mu, ax


class ASGD(Optimizer):
    """Averaged SGD: SGD with a slowly shrinking step, and the average of its path.

    ::

        param = param * (1 - lambd * eta) - eta * grad
        ax = ax + mu * (param - ax)                      (ax = param as long as mu = 1)
        eta = lr / (1 + lambd * lr * t)**alpha           (for the next step)
        mu = 1 / max(1, t - t0)

    The average is ``optimizer.state[param]["ax"]``; averaging sets in after ``t0`` steps.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate at the first step (default 1e-2).
        lambd: decay term (default 1e-4).
        alpha: power by which eta shrinks (default 0.75).
        t0: step at which averaging starts (default 1e6).
        weight_decay: L2 penalty (default 0).

    When to use: convex problems whose last digits matter: read the averages ``ax`` at the end.
    For networks, ``ema_decay`` beside any optimizer is simpler.

    State: ``step`` (t), ``eta``, ``mu``, ``ax``.

    Raises:
        ValueError: an option out of its range.

    Source: Polyak, Juditsky, "Acceleration of stochastic approximation by averaging", 1992.
    """

    rule = asgd

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        lambd: Number = 1e-4,
        alpha: Number = 0.75,
        t0: Number = 1e6,
        weight_decay: Number = 0,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        capturable: bool = False,
        *,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
