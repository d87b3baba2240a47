"""The sum of squares of each gradient, for guards: by a runner that offers it, else by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from steprule.engines.tensor_vocabulary import wide_dtype
from steprule.formats.floating import real_view

# One for each leaf, 0 where it has no gradient; a tensor where reading it would have to wait.
SquareSums: TypeAlias = Sequence[float] | Tensor


@runtime_checkable
class SumsSquares(Protocol):
    """A runner that sums the squares of the gradients it has collected faster than torch."""

    #: What :meth:`sum_squares` found last, in the order of the leaves; kept for good.
    square_sums: Sequence[float]

    def sum_squares(self) -> None:
        """Sum the squares, in float64, the same for any number of threads."""


def square_sums_of(grads: Sequence[Tensor | None]) -> SquareSums:
    """Return the sums of squares of gradients, in float64."""
    found = [_square_sum(grad) for grad in grads if grad is not None]
    if found and (torch.is_grad_enabled() or not all(sum_.is_cpu for sum_ in found)):
        zero = torch.zeros_like(found[0])
        rest = iter(found)
        return torch.stack(
            [zero if g is None else next(rest).to(zero.device, non_blocking=True) for g in grads]
        )
    numbers = iter(torch.stack(found).tolist() if found else ())
    return [0.0 if grad is None else next(numbers) for grad in grads]


def _square_sum(grad: Tensor) -> Tensor:
    # Entries of a sparse gradient for the same place add up first.
    values = real_view(grad.coalesce()._values() if grad.is_sparse else grad)
    norm: Tensor = torch.linalg.vector_norm(values, dtype=wide_dtype(values))
    return norm * norm


def is_finite(grad: Tensor) -> bool:
    """Tell whether no number of a gradient is infinite or nan."""
    values = grad.coalesce()._values() if grad.is_sparse else grad
    return bool(torch.isfinite(values).all())
