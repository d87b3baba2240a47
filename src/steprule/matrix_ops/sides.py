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
    """Return ``x @ x.T`` of each on the left side, ``x.T @ x`` on the right."""

    def work(stack: Tensor) -> Tensor:
        first = stack if side == "left" else stack.mT
        return torch.bmm(first, first.mT)

    return over_stacks([[as_matrix(x) for x in xs]], work)
