"""AdEMAMix."""

from __future__ import annotations

from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Range, Slot, rule
from steprule.ops import exp, log, maximum, minimum, sqrt, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options

_STEPS = Range(low=0.0, low_included=False)


@rule(
    exp_avg_sq=Slot(signed=False),
    exp_avg_slow=Slot(
        full_precision="a step moves it by a ten-thousandth, and roundings would add up that long"
    ),
    ranges={"alpha": NON_NEGATIVE, "alpha_warmup": _STEPS, "beta3_warmup": _STEPS},
    optional=("alpha_warmup", "beta3_warmup"),
    decoupled=True,
    source="Pagliardini, Ablin, Grangier: The AdEMAMix optimizer: better, faster, older, 2024",
)
def ademamix(
    param: Any,
    grad: Any,
    exp_avg: Any,
    exp_avg_sq: Any,
    exp_avg_slow: Any,
    *,
    step: Any,
    lr: Any,
    beta1: Any,
    beta2: Any,
    beta3: Any,
    alpha: Any,
    beta3_warmup: Any,
    alpha_warmup: Any,
    eps: Any,
) -> Any:
    """Return the update of :class:`AdEMAMix`."""
    correction1 = 1 - beta1**step
    correction2 = 1 - beta2**step
    alpha = alpha * _progress(step, alpha_warmup)
    done = _progress(step, beta3_warmup)
    lifetime = (1 - done) * _lifetime(beta1) + done * _lifetime(beta3)
    beta3 = where(done < 1, minimum(exp(-1 / lifetime), beta3), beta3)

    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * (grad * grad)
    exp_avg_slow = beta3 * exp_avg_slow + (1 - beta3) * grad

    denom = sqrt(exp_avg_sq) / sqrt(correction2) + eps
    update = (exp_avg / correction1 + alpha * exp_avg_slow) / denom
    return param - lr * update, exp_avg, exp_avg_sq, exp_avg_slow


def _progress(step: Any, warmup: Any) -> Any:
    """Return the share of a warm-up that is done; None, for none at all, comes as nan."""
    return where(warmup == warmup, minimum(step / warmup, 1.0), 1.0)


def _lifetime(beta: Any) -> Any:
    return -1 / log(maximum(beta, 1e-8))  # of 0 there is no logarithm


class AdEMAMix(Optimizer):
    """AdEMAMix: AdamW with a second, much slower average of gradients.

    ::

        m = beta1 * m + (1 - beta1) * grad
        v = beta2 * v + (1 - beta2) * grad**2
        m_slow = b * m_slow + (1 - b) * grad
        update = (m / (1 - beta1**t) + a * m_slow) / (sqrt(v / (1 - beta2**t)) + eps)
        param = param * (1 - lr * weight_decay) - lr * update

        a = alpha * min(1, t / alpha_warmup)
        log(b) = 1 / ((1 - w) / log(beta1) + w / log(beta3)),  w = min(1, t / beta3_warmup)

    so that the half-life of m_slow grows evenly from that of m; b is never above beta3.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: learning rate (default 1e-3).
        betas: decay of ``exp_avg``, ``exp_avg_sq`` and ``exp_avg_slow`` per step, each in [0, 1)
            (default (0.9, 0.999, 0.9999)).
        alpha: weight of the slow average, >= 0 (default 2.0; the paper takes 5 to 10).
        beta3_warmup: steps over which the decay of the slow average grows to beta3, > 0; None for
            no warm-up (default). The paper: as many as the whole run has; without it a run with
            such a beta3 may diverge at first.
        alpha_warmup: steps over which the weight grows to alpha, > 0; None for no warm-up
            (default).
        eps: added to the denominator, >= 0 (default 1e-8).
        weight_decay: decoupled decay (default 0).

    When to use: for long runs of language models, where old gradients still tell something. It has
    one and a half times AdamW's state. Start from AdamW's lr and weight decay, with both warm-ups
    over the whole run.

    State: ``step`` (t), ``exp_avg`` (m), ``exp_avg_sq`` (v), ``exp_avg_slow`` (m_slow).

    Raises:
        ValueError: an option out of its range.

    Source: Pagliardini, Ablin, Grangier, "The AdEMAMix optimizer: better, faster, older", 2024,
    algorithm 1 (whose T is both warm-ups), with the names and defaults of the authors' code,
    which adds 1e-8 to a beta whose logarithm it takes.
    """

    rule = ademamix

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        betas: tuple[Number, Number, Number] = (0.9, 0.999, 0.9999),
        alpha: Number = 2.0,
        beta3_warmup: Number | None = None,
        alpha_warmup: Number | None = None,
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)
