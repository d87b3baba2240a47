"""Resilient backpropagation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from typing_extensions import Unpack

from steprule.language.rule import NON_NEGATIVE, Range, Slot, rule
from steprule.ops import maximum, minimum, sign, where
from steprule.optimizer import Number, Optimizer, ParamsT, SharedOptions, own_options
from steprule.optimizer.options import check_kinds


@rule(
    prev=Slot(full_precision="a gradient of which the sign counts, and whether it is 0"),
    step_size=Slot(
        signed=False,
        init="lr",
        full_precision="the steps themselves: nothing would average errors out",
    ),
    ranges={
        "etaminus": Range(0.0, 1.0, low_included=False, high_included=False),
        "etaplus": Range(low=1.0, low_included=False),
        "step_sizes": NON_NEGATIVE,
    },
    parts={"etas": ("etaminus", "etaplus"), "step_sizes": ("step_size_min", "step_size_max")},
    counts_steps=True,
    keeps_denormals=True,
    source="Riedmiller, Braun: Rprop: a fast adaptive learning algorithm, 1992",
)
def rprop(
    param: Any,
    grad: Any,
    prev: Any,
    step_size: Any,
    *,
    etaminus: Any,
    etaplus: Any,
    step_size_min: Any,
    step_size_max: Any,
) -> Any:
    """Return the update of :class:`Rprop`."""
    agreement = sign(grad * prev)
    factor = where(agreement > 0, etaplus, where(agreement < 0, etaminus, 1.0))
    step_size = minimum(maximum(step_size * factor, step_size_min), step_size_max)

    grad = where(agreement < 0, 0.0, grad)
    return param - sign(grad) * step_size, grad, step_size


class Rprop(Optimizer):
    """Rprop: steps of the gradient's sign, each element with a size of its own.

    ::

        s = grad * prev                                  (prev: the last gradient)
        eta = clamp(eta * (etaplus if s > 0, etaminus if s < 0, else 1), min, max)
        grad = 0 where s < 0
        param = param - sign(grad) * eta;  prev = grad

    For full batches: the sign of a mini-batch's gradient is too noisy.

    Args:
        params: tensors, named tensors or groups, see :class:`~steprule.Optimizer`, which has
            the arguments not listed here.
        lr: the size that every step starts from (default 1e-2).
        etas: ``(etaminus, etaplus)``, 0 < etaminus < 1 < etaplus (default (0.5, 1.2)).
        step_sizes: smallest and largest size of a step (default (1e-6, 50)).

    When to use: the full batch at every step, never mini-batches: it follows the signs of
    gradients, which noise would flip. On small smooth problems L-BFGS needs fewer evaluations.

    State: ``step``, ``prev`` (the last gradient), ``step_size`` (eta).

    Raises:
        ValueError: an option out of its range, or the smallest step above the largest.

    Source: Riedmiller, Braun, "Rprop: a fast adaptive learning algorithm", 1992. As in torch,
    gradients whose product underflows (both below about 1e-23 in float32) count as unrelated.
    """

    rule = rprop

    def __init__(
        self,
        params: ParamsT,
        lr: Number = 1e-2,
        etas: tuple[Number, Number] = (0.5, 1.2),
        step_sizes: tuple[Number, Number] = (1e-6, 50),
        *,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        engine: str = "auto",
        **shared: Unpack[SharedOptions],
    ) -> None:
        super().__init__(params, own_options(locals()), engine=engine)

    def _check_group(self, options: Mapping[str, Any], where: str) -> None:
        check_kinds(rprop, options, where)
        etas, sizes = options["etas"], options["step_sizes"]
        if len(etas) == 2 and not 0.0 < etas[0] < 1.0 < etas[1]:
            raise ValueError(
                f"{where}Invalid eta values: {etas[0]}, {etas[1]} "
                "(etas must be 0 < etaminus < 1 < etaplus)"
            )
        if len(sizes) == 2 and sizes[0] > sizes[1]:
            raise ValueError(f"{where}step_sizes must be (smallest, largest), got {sizes}")
        super()._check_group(options, where)
