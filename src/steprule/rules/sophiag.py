"""SophiaG."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Range, Slot, rule
from steprule.ops import clip
from steprule.optimizer import (
    Number,
    Optimizer,
    ParamsT,
    SharedOptions,
    own_options,
    uncompiled,
)
from steprule.optimizer.averaging import STEP_AMONG_AVERAGES
from steprule.optimizer.side_rule import SideRule

_SOURCE = "Liu et al.: Sophia: a scalable stochastic second-order optimizer, 2023"


@rule(
    hessian=Slot(signed=False),
    ranges={"rho": NON_NEGATIVE, "bs": Range(low=0.0, low_included=False)},
    decoupled=True,
    source=_SOURCE,
)
def sophiag(
    param: Any,
    grad: Any,
    exp_avg: Any,
    hessian: Any,
    *,
    lr: Any,
    beta1: Any,
    rho: Any,
    eps: Any,
    bs: Any,
) -> Any:
    """Return the update of :class:`SophiaG`."""
    scale = rho * bs

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    update = clip(exp_avg / (scale * hessian + eps), -1.0, 1.0)
    return param - lr * update, exp_avg, hessian


@rule(hessian=Slot(signed=False), source=_SOURCE)
def hessian_average(param: Any, grad: Any, hessian: Any, *, beta2: Any) -> Any:
    """Return the average that :meth:`SophiaG.update_hessian` moves, and the parameter as it was."""
    return param, beta2 * hessian + (1 - beta2) * (grad * grad)


class SophiaG(Optimizer):
    """SophiaG: momentum divided by an estimate of the curvature, each element clipped.

    ::

        m = beta1 * m + (1 - beta1) * grad
        param = param * (1 - lr * weight_decay)
                - lr * clip(m / (rho * bs * h + eps), -1, 1)

    and, in :meth:`update_hessian`, of the gradient of a loss on labels that the model itself drew::

        h = beta2 * h + (1 - beta2) * grad**2

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate, by which an element moves at most in a step (default 1e-4).
        betas: decay of m per step and of h per :meth:`update_hessian`, each in [0, 1) (default
            (0.965, 0.99)).
        rho: how much of the curvature counts, >= 0 (default 0.04): so that a tenth to a half of
            all elements are not clipped.
        weight_decay: decoupled decay (default 0.1).
        bs: over how many labels the loss is a mean, > 0: for a language model the tokens of a
            batch (default 5120).
        eps: added to the denominator, >= 0 (default 1e-15).

    When to use: for language models, where drawing labels is cheap. It has AdamW's state, and an
    extra forward and backward pass about every 10 steps. Start from a little less than AdamW's
    lr, with twice its weight decay. Without :meth:`update_hessian` it is Signum.

    State: ``exp_avg`` (m), ``hessian`` (h).

    Raises:
        ValueError: an option out of its range.

    Example:
        >>> import torch, steprule
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = steprule.SophiaG(model.parameters(), lr=1e-3, bs=8)
        >>> x, y = torch.ones(8, 4), torch.zeros(8, dtype=torch.long)
        >>> for step in range(20):
        ...     torch.nn.functional.cross_entropy(model(x), y).backward()
        ...     optimizer.step()
        ...     optimizer.zero_grad()
        ...     if step % 10 == 0:
        ...         logits = model(x)
        ...         drawn = torch.distributions.Categorical(logits=logits).sample()
        ...         torch.nn.functional.cross_entropy(logits, drawn).backward()
        ...         optimizer.update_hessian()
        ...         optimizer.zero_grad()

    Source: Liu, Li, Hall, Liang, Ma, "Sophia: a scalable stochastic second-order optimizer for
    language model pre-training", 2023, algorithm 3 with the estimator of algorithm 2, as the
    authors' code has it: lr is the paper's times rho, eps is added where the paper takes a
    maximum, and bs multiplies h where it is used. There bs is an argument of ``step``, and eps is
    fixed.
    """

    rule = sophiag
    _hessian_updates: SideRule

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-4,
        betas: tuple[Number, Number] = (0.965, 0.99),
        rho: Number = 0.04,
        weight_decay: Number = 1e-1,
        *,
        bs: Number = 5120,
        eps: Number = 1e-15,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _prepare(self) -> None:
        super()._prepare()
        self._hessian_updates = SideRule(type(self).__name__, hessian_average, self.extras)

    @uncompiled
    def update_hessian(self) -> None:
        """Move the estimate of the curvature by the squares of the gradients that there are.

        Call it about every tenth step, between that step's ``zero_grad()`` and the next backward
        pass, after the backward pass of a mean loss on labels drawn from the model's own
        predictions; then ``zero_grad()`` again. Gradients are taken as they are: not clipped, and
        not divided by a gradient scaler's factor (``scaler.unscale_(optimizer)`` does that). With
        :func:`~steprule.step_in_backward` that backward pass belongs inside
        :func:`~steprule.accumulating`. What :func:`~steprule.combine` makes has no such method.

        Raises:
            RuntimeError: a gradient that can't be taken, named; nothing is changed. Or running
                averages are in the parameters' place.
        """
        if self._is_averaged:
            raise RuntimeError(STEP_AMONG_AVERAGES)
        context = self._context()
        if self._owners is None:
            self._hessian_updates.run(context)
            return
        with self._owners.step(self.param_groups):
            self._hessian_updates.run(context)
