"""Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import FINITE, Range, Slot, rule
from steprule.ops import lerp, maximum, mean_of, minimum, sqrt, square, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.optimizer.options import check_kinds


@rule(
    row_var=Slot(signed=False, shape="row"),
    col_var=Slot(signed=False, shape="column"),
    variance=Slot(signed=False, shape="vector"),
    ranges={"beta2_decay": Range(high=0.0), "d": Range(low=1.0), "eps": FINITE},
    parts={"eps": ("eps1", "eps2")},
    takes_complex=False,
    optional=("eps1",),
    source="Shazeer, Stern: Adafactor: adaptive learning rates with sublinear memory cost, 2018",
)
def adafactor(
    param: Any,
    grad: Any,
    row_var: Any,
    col_var: Any,
    variance: Any,
    *,
    step: Any,
    machine_eps: Any,
    lr: Any,
    beta2_decay: Any,
    eps1: Any,
    eps2: Any,
    d: Any,
    weight_decay: Any,
) -> Any:
    """Return the update of :class:`Adafactor`."""
    eps1 = where(eps1 == eps1, eps1, machine_eps)  # None comes as nan
    weight = step**beta2_decay
    step_size = maximum(sqrt(mean_of(square(param))), eps2) * minimum(lr, 1 / sqrt(step))
    param = param * (1 - lr * weight_decay)

    if variance is None:
        row_var = lerp(row_var, mean_of(square(grad), axis=-1), weight)
        col_var = lerp(col_var, mean_of(square(grad), axis=-2), weight)
        estimate = row_var * col_var / maximum(mean_of(row_var, axis=-2), eps1)
    else:
        variance = estimate = lerp(variance, square(grad), weight)

    update = grad / sqrt(maximum(estimate, eps1 * eps1))
    update = update / maximum(sqrt(mean_of(square(update))) / d, 1.0)
    return param - step_size * update, row_var, col_var, variance


class Adafactor(Optimizer):
    """Adafactor: a second moment kept as one number for each row and column of a matrix.

    ::

        w = t**beta2_decay
        R = R + w * (mean of grad**2 over columns - R);  C likewise over rows
        V = R C / max(mean of R, eps1)                   (vectors: V itself is kept)
        U = grad / sqrt(max(V, eps1**2));  U = U / max(1, rms(U) / d)
        param = param * (1 - lr * weight_decay)
                - max(eps2, rms(param)) * min(lr, 1 / sqrt(t)) * U

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here. Real numbers only.
        lr: largest relative step, and the scale of the decay (default 1e-2).
        beta2_decay: exponent of t in the weight of the newest squares, <= 0 (default -0.8).
        eps: ``(eps1, eps2)``, each >= 0: bounds of the second moment and of the parameter's root
            mean square. An eps1 of None is the machine epsilon of the parameter's dtype (default
            (None, 1e-3)).
        d: threshold on the root mean square of an update, >= 1 (default 1.0).
        weight_decay: decoupled decay (default 0).

    When to use: memory is what there is least of: its state is next to nothing for matrices. It
    costs four readings of the gradient; AdamW with ``state_format="int8"`` is the alternative
    to try.

    State: ``step`` (t), and ``row_var`` (R), ``col_var`` (C) for tensors of two axes or more,
    ``variance`` (V) for others: rows + columns numbers in place of rows * columns.

    Raises:
        ValueError: an option out of its range.
        RuntimeError: at the step, a complex parameter or a sparse gradient.

    Source: Shazeer, Stern, "Adafactor: adaptive learning rates with sublinear memory cost",
    2018, algorithm 4 and 5. As in torch, eps1 stands where V is used instead of being added to
    grad**2, and lr bounds the relative step (paper: 1e-2). Unlike torch, each parameter's own
    dtype gives eps1, not the first one's.
    """

    rule = adafactor

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        beta2_decay: Number = -0.8,
        eps: tuple[Number | None, Number] = (None, 1e-3),
        d: Number = 1.0,
        weight_decay: Number = 0.0,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        eps = options["eps"]
        given = isinstance(eps, (tuple, list)) and list(eps[:1]) == [None]
        check_kinds(adafactor, {**options, "eps": (0.0, *eps[1:]) if given else eps}, where)
        eps1, eps2 = eps
        if eps1 is not None and not eps1 >= 0:
            raise ValueError(f"{where}epsilon1 should be >= 0 but is: {eps1}")
        if not eps2 >= 0:
            raise ValueError(f"{where}epsilon2 should be >= 0 but is: {eps2}")
        if not options["d"] >= 1:
            raise ValueError(f"{where}Clipping threshold d should be >= 1 but is: {options['d']}")
        if not options["beta2_decay"] <= 0:
            raise ValueError(f"{where}beta2_decay should be <= 0 but is: {options['beta2_decay']}")
        super()._check_group({**options, "eps": (0.0 if eps1 is None else eps1, eps2)}, where)
