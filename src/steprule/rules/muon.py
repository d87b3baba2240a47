"""Muon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from typing_extensions import Unpack

from steprule.language.rule import FINITE, Range, rule
from steprule.matrix_ops import METHODS, orthogonalized
from steprule.ops import lerp, maximum, sqrt
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.optimizer.options import check_flag

LR_ADJUSTMENTS = ("original", "match_rms_adamw", "spectral_unclamped")


@rule(
    ranges={"momentum": Range(low=0.0), "ns_coefficients": FINITE},
    parts={"ns_coefficients": ("a", "b", "c")},
    elementwise=False,
    batched=True,
    decoupled=True,
    takes_complex=False,
    source="Jordan et al.: Muon: an optimizer for hidden layers in neural networks, 2024",
)
def muon(
    param: Any,
    grad: Any,
    momentum_buffer: Any,
    *,
    rows: Any,
    columns: Any,
    lr: Any,
    momentum: Any,
    a: Any,
    b: Any,
    c: Any,
    eps: Any,
    ns_steps: int,
    nesterov: bool,
    adjust_lr_fn: str,
    ns_method: str,
) -> Any:
    """Return the update of :class:`Muon`."""
    if adjust_lr_fn == "match_rms_adamw":
        lr = lr * 0.2 * sqrt(maximum(rows, columns))
    elif adjust_lr_fn == "spectral_unclamped":
        lr = lr * sqrt(rows / columns)
    else:
        lr = lr * sqrt(maximum(rows / columns, 1.0))

    momentum_buffer = lerp(momentum_buffer, grad, 1 - momentum)
    update = lerp(grad, momentum_buffer, momentum) if nesterov else momentum_buffer

    update = orthogonalized(update, (a, b, c), ns_steps, eps, ns_method)
    return param - lr * update, momentum_buffer


class Muon(Optimizer):
    """Muon: momentum whose matrix is made nearly orthogonal before each step.

    ::

        b = b + (1 - momentum) * (grad - b)
        u = NewtonSchulz(grad + momentum * (b - grad))   (without nesterov: of b)
        param = param * (1 - lr * weight_decay) - lr * scale * u

    NewtonSchulz draws all singular values towards 1 by ``ns_steps`` iterations. The learning rate
    is multiplied by scale = sqrt(max(1, rows / columns)), or as ``adjust_lr_fn`` says.

    Args:
        params: matrices (two axes), see :class:`~steprule.Optimizer`, which has the arguments not
            listed here. Give biases, embeddings and heads to another optimizer
            (:func:`steprule.combine` makes one of both).
        lr: learning rate (default 1e-3).
        weight_decay: decoupled decay (default 0.1).
        momentum: decay of b per step, >= 0 (default 0.95).
        nesterov: orthogonalize the gradient moved towards b by the momentum, not b itself (default
            True).
        ns_coefficients: (a, b, c) of the iteration.
        eps: smallest norm that is divided by, >= 0 (default 1e-7).
        ns_steps: iterations, below 100 (default 5).
        adjust_lr_fn: ``"original"`` (as None), ``"match_rms_adamw"`` (by 0.2 sqrt(max(rows,
            columns))) or ``"spectral_unclamped"`` (sqrt(rows / columns); in torch from 2.14 on).
        ns_method: ``"standard"``; ``"gram"``, on the Gram matrix, with fewer operations the
            longer one side is than the other, and in bfloat16 another error (docs/matrices.md);
            or ``"auto"``, which takes gram where one side is at least twice the other.
        flatten: take parameters of more than two axes (convolutions), each as the matrix of its
            first axis and all others.

    When to use: hidden matrices of transformers and other large networks, with AdamW for all
    else (:func:`steprule.combine`): it takes fewer steps for the same loss, for half of AdamW's
    state and some matrix products. Start from lr=0.02, or from AdamW's with
    ``adjust_lr_fn="match_rms_adamw"``.

    State: ``momentum_buffer`` (b).

    Raises:
        ValueError: an option out of its range; a parameter that is not a matrix.
        RuntimeError: at the step, a complex parameter or a sparse gradient.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024;
    match_rms_adamw: Liu et al., "Muon is scalable for LLM training", 2025; spectral_unclamped:
    Bernstein, "Deriving Muon", 2025; gram: Zhang, Amsel, Chen, Dao, "Gram Newton-Schulz", 2026.
    """

    rule = muon
    extras = {"ns_method": "standard", "flatten": False, "maximize": False}
    only_2d = True

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-3,
        weight_decay: Number = 0.1,
        momentum: Number = 0.95,
        nesterov: bool = True,
        ns_coefficients: tuple[Number, Number, Number] = (3.4445, -4.775, 2.0315),
        eps: Number = 1e-7,
        ns_steps: int = 5,
        adjust_lr_fn: str | None = None,
        *,
        ns_method: Literal["standard", "gram", "auto"] = "standard",
        flatten: bool = False,
        maximize: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        super()._check_group(options, where)
        if options["adjust_lr_fn"] not in (None, *LR_ADJUSTMENTS):
            raise ValueError(
                f"{where}Adjust learning rate function {options['adjust_lr_fn']} is not supported: "
                f"take one of {', '.join(map(repr, LR_ADJUSTMENTS))}"
            )
        check_flag("flatten", options["flatten"], where)
        steps = options["ns_steps"]
        if isinstance(steps, bool) or not isinstance(steps, int):
            raise TypeError(f"{where}ns_steps must be an integer in [0, 100), got {steps!r}")
        if not 0 <= steps < 100:
            raise ValueError(f"{where}ns_steps must be an integer in [0, 100), got {steps!r}")

        if options["ns_method"] not in METHODS:
            raise ValueError(
                f"{where}ns_method must be one of {', '.join(map(repr, METHODS))}, "
                f"got {options['ns_method']!r}"
            )
        names = options.get("param_names")
        for i, param in enumerate(options.get("params", ())):
            if param.ndim != 2 and not (options["flatten"] and param.ndim > 2):
                label = repr(names[i]) if names else f"the one at index {i}"
                raise ValueError(
                    f"{where}Muon only supports 2D parameters, {label} has shape "
                    f"{tuple(param.shape)}: give it to another optimizer"
                    + (" (or take convolutions with flatten=True)" if param.ndim > 2 else "")
                )
