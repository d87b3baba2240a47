"""Operations on whole matrices, for rules: products, means over an axis, orthogonalization.

:func:`orthogonalized` can be recorded: the engine ``foreach`` then carries it out for many
matrices at once. The others are for rules that are not elementwise, on the eager engine alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from torch import Tensor

from steprule.language.recording import Symbol
from steprule.matrix_ops.orthogonalization import METHODS as METHODS
from steprule.matrix_ops.orthogonalization import orthogonalized_list


class Spread(threading.local):
    """What is asked in the place of an operation on whole matrices, given a part of one.

    It is also given what the operation is told beside its matrix.
    """

    ask: Callable[[Tensor, tuple[Any, ...]], Tensor] | None = None


SPREAD = Spread()


def mean_square(x: Tensor, axis: int | None = None) -> Any:
    """Mean of the squares over one axis (kept, with length 1), or over all elements."""
    if axis is None:
        return x.square().mean() if x.numel() else x.new_zeros(())
    return x.square().mean(dim=axis, keepdim=True)


def mean(x: Tensor, axis: int) -> Tensor:
    """Mean over one axis, which is kept with length 1."""
    return x.mean(dim=axis, keepdim=True)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product over the last two axes."""
    return a @ b


def orthogonalized(
    x: Any,
    coefficients: tuple[Any, Any, Any],
    steps: int,
    eps: Any,
    method: str = "standard",
) -> Any:
    """Return ``x`` with its singular values drawn towards 1: U V^T, roughly, where x = U S V^T.

    See :mod:`steprule.matrix_ops.orthogonalization`. What has more than two axes is taken as the
    matrix of its first axis and all others.

    Args:
        x: a matrix.
        coefficients: of the iteration.
        steps: how many iterations.
        eps: smallest norm that is divided by.
        method: ``"standard"``, ``"gram"``, or ``"auto"``.
    """
    if isinstance(x, Symbol):
        operands = (x, *coefficients, eps)
        return x.tape.record("orthogonalized", *operands, settings=(steps, method))
    if SPREAD.ask is not None:
        return SPREAD.ask(x, (*coefficients, eps, steps, method))
    return orthogonalized_list([x], *coefficients, eps, steps, method)[0]
