"""SparseAdam."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import Unpack

from steprule.language.rule import Slot, rule
from steprule.ops import lerp, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    sparse="only",
    takes_complex=False,
    source="Kingma, Ba: Adam: a method for stochastic optimization, 2015",
)
def sparse_adam(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    eps: Any,
) -> Any:
    """Return the update of :class:`SparseAdam`, for the rows that the gradient has."""
    step_size = lr * sqrt(1 - beta2**step) / (1 - beta1**step)

    exp_avg = lerp(exp_avg, grad, 1 - beta1)
    exp_avg_sq = lerp(exp_avg_sq, grad * grad, 1 - beta2)

    return param - step_size * (exp_avg / (sqrt(exp_avg_sq) + eps)), exp_avg, exp_avg_sq


class SparseAdam(Optimizer):
    """Adam for sparse gradients: rows that the gradient lacks are left alone, moments too.

    ::

        m = m + (1 - beta1) * (grad - m)                 (for the gradient's rows)
        v = v + (1 - beta2) * (grad**2 - v)
        param = param - lr * sqrt(1 - beta2**t) / (1 - beta1**t) * m / (sqrt(v) + eps)

    t counts the optimizer's steps, not a row's. For the gradients of
    ``nn.Embedding(sparse=True)`` and the like; dense parameters, sparse gradients.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.999)).
        eps: added to the denominator, >= 0 (default 1e-8).

    When to use: large embeddings with ``sparse=True``: only rows in the batch are read and
    written. Give all other parameters to Adam.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), of the parameter's full shape.

    Raises:
        ValueError: an option out of its range; a parameter that is sparse or complex.
        RuntimeError: at the step, a dense gradient.

    Source: Kingma, Ba, "Adam: a method for stochastic optimization", 2015, in the lazy form.
    """

    rule = sparse_adam
    needs_sparse = True

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        maximize: bool = False,
        *,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_params(self, params: Sequence[Tensor], names: list[str] | None, where: str) -> None:
        for i, param in enumerate(params):
            label = repr(names[i]) if names else f"the one at index {i}"
            if param.is_sparse:
                raise ValueError(
                    f"{where}SparseAdam requires dense parameter tensors, {label} is sparse"
                )
            if param.is_complex():
                raise ValueError(
                    f"{where}SparseAdam does not support complex parameters, {label} is complex"
                )
