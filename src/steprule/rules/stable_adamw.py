"""StableAdamW."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import Range, Slot, rule
from steprule.ops import maximum, mean_of, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options


@rule(
    exp_avg_sq=Slot(signed=False),
    ranges={"eps": Range(low=0.0, low_included=False)},
    source="Wortsman et al.: Stable and low-precision training for large models, 2023",
)
def stable_adamw(
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
    weight_decay: Any,
) -> Any:
    """Return the update of :class:`StableAdamW`."""
    weight1 = (1 - beta1) / (1 - beta1**step)
    weight2 = (1 - beta2) / (1 - beta2**step)

    exp_avg = (1 - weight1) * exp_avg + weight1 * grad
    exp_avg_sq = (1 - weight2) * exp_avg_sq + weight2 * (grad * grad)

    rms = sqrt(mean_of(grad * grad / maximum(exp_avg_sq, eps * eps)))
    lr = lr / maximum(rms, 1.0)
    param = param - lr * weight_decay * param
    return param - lr * (exp_avg / (sqrt(exp_avg_sq) + eps)), exp_avg, exp_avg_sq


class StableAdamW(Optimizer):
    """StableAdamW: AdamW that shortens a parameter's step when its second moment is out of date.

    ::

        w1 = (1 - beta1) / (1 - beta1**t);  w2 likewise
        m = (1 - w1) * m + w1 * grad
        v = (1 - w2) * v + w2 * grad**2
        rms = sqrt(mean(grad**2 / max(v, eps**2)));  eta = lr / max(1, rms)
        param = param * (1 - eta * weight_decay) - eta * m / (sqrt(v) + eps)

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of the two averages per step, each in [0, 1) (default (0.9, 0.99)).
        eps: added to the denominator, > 0 (default 1e-8).
        weight_decay: decoupled decay, shortened as the step is (default 1e-2).

    When to use: large models whose loss spikes: where the second moment lags behind, the step
    is shortened, which takes the place of clipping. It reads elements twice; AdamW's lr carries
    over.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), both free of bias as they stand.

    Raises:
        ValueError: an option out of its range.

    Source: Wortsman, Dettmers, Zettlemoyer, Morcos, Farhadi, Schmidt, "Stable and low-precision
    training for large-scale vision-language models", 2023, algorithm 2.
    """

    rule = stable_adamw

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.99),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
