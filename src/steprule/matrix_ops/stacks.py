"""Matrices of equal shapes, stacked: small products by themselves keep no processor busy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from steprule.matrix_ops.orthogonalization import stack_length


def as_matrix(x: Tensor) -> Tensor:
    """Return a tensor as the matrix of its first axis and all others; a vector is a column."""
    return x.reshape(x.shape[0], -1)


def over_stacks(columns: Sequence[Sequence[Tensor]], work: Callable[..., Tensor]) -> list[Tensor]:
    """Return what is made of matrices that belong together, those of equal shapes at once.

    A matrix by itself goes the same way, as a stack of one, so that no result depends on what
    others there are but for how a library divides its work.

    Args:
        columns: lists of matrices; the i-th of each belong together.
        work: given a stack of each, (count, rows, columns), returns one.
    """
    found: list[Tensor] = list(columns[0])
    for places in _stacks(columns):
        stacks = [_stacked([column[i] for i in places]) for column in columns]
        for i, made in zip(places, work(*stacks).unbind(), strict=True):
            found[i] = made
    return found


def _stacked(matrices: Sequence[Tensor]) -> Tensor:
    """Return a stack; of one matrix itself, which may be large."""
    return torch.stack(list(matrices)) if len(matrices) > 1 else matrices[0].unsqueeze(0)


def _stacks(columns: Sequence[Sequence[Tensor]]) -> Iterator[list[int]]:
    """Yield which matrices make a stack: alike, and no more than are worked on well at once."""
    alike: dict[object, list[int]] = {}
    for i, together in enumerate(zip(*columns, strict=True)):
        key = tuple((x.shape, x.dtype, x.device) for x in together)
        alike.setdefault(key, []).append(i)
    for places in alike.values():
        largest = max((column[places[0]] for column in columns), key=torch.numel)
        rows, width = largest.shape
        most = stack_length(rows, width, largest.dtype, largest.device)
        for start in range(0, len(places), most):
            yield places[start : start + most]
