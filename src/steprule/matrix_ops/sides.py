"""A matrix and the square matrices of its sides: products between them, for many at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from steprule.matrix_ops.stacks import as_matrix, over_stacks

Side: TypeAlias = Literal["left", "right"]


def sandwiched_list(
    xs: Sequence[Tensor], *given: Sequence[Tensor] | tuple[Side, ...] | Side | None
) -> list[Tensor]:
    """Return ``left @ x @ right`` of each, in its shape.

    Args:
        xs: the matrices; what has more than two axes is flattened.
        given: a list for each side that there is; which these are; and the one that is transposed,
            or None.
    """
    *lists, sides, transposed = given
    matrices = [as_matrix(x) for x in xs]

    def work(stack: Tensor, *squares: Tensor) -> Tensor:
        for side, square in zip(sides or (), squares, strict=True):
            factor = square.mT if side == transposed else square
            stack = torch.bmm(factor, stack) if side == "left" else torch.bmm(stack, factor)
        return stack

    made = over_stacks([matrices, *lists], work)  # type: ignore[list-item]  # the lists
    return [matrix.reshape(x.shape) for matrix, x in zip(made, xs, strict=True)]


def gram_list(xs: Sequence[Tensor], side: Side) -> list[Tensor]:
    """Return ``x @ x.T`` of each on the left side, ``x.T @ x`` on the right.

    Zeros for what is finite, but whose products are nearly or not: an average is then as it was,
    where an infinity would never leave it again.
    """

    def work(stack: Tensor) -> Tensor:
        first = stack if side == "left" else stack.mT
        return _without_overflow(torch.bmm(first, first.mT), stack)

    return over_stacks([[as_matrix(x) for x in xs]], work)


def _without_overflow(products: Tensor, stack: Tensor) -> Tensor:
    # So far below the largest number that sums of products, and their products with a basis, are
    # finite. No element is larger than the largest on the diagonal.
    limit = torch.finfo(products.dtype).max * torch.finfo(products.dtype).eps
    is_within = (products.diagonal(dim1=1, dim2=2) <= limit).all(dim=1)
    is_spoilt = ~stack.isfinite().flatten(1).all(dim=1)  # a gradient that guards are there for
    return torch.where((is_within | is_spoilt)[:, None, None], products, 0.0)
