"""The matrix operation in the midst of a rule, for leaves of one shape: stack after stack.

Each stack is as large as suits the device, so that neither copies nor much memory are needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from steprule.engines.engine import Leaf
from steprule.engines.kernels.matrix_operands import numbers_by_operand
from steprule.language.form import Form
from steprule.language.recording import Value
from steprule.matrix_ops.orthogonalization import (
    iteration_dtype,
    orthogonalized_stack,
    stack_length,
)


class MatrixStacks:
    """Which leaves make a stack, and what is done with it.

    Attributes:
        shape: rows and columns of each matrix.
        dtype: in which it is iterated on.
        number_names: the group's numbers that the operation is told.
        ranges: the first leaf of each stack and the one after its last: neighbours of one group.
    """

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        param = leaves[0].param
        self.shape = param.shape[0], param.numel() // max(param.shape[0], 1)
        self.dtype = iteration_dtype(param.device)
        recording = form.recording()
        self._operation = recording.matrix_operations[0]
        self._number_names = numbers_by_operand(recording)
        of_operation = [x for x in self._operation.operands[1:] if isinstance(x, Value)]
        self.number_names = [self._number_names[x] for x in of_operation]
        self.most = stack_length(*self.shape, self.dtype, param.device)
        self.ranges = list(self._ranges([leaf.group for leaf in leaves]))

    def _ranges(self, groups: Sequence[int]) -> Iterator[tuple[int, int]]:
        start = 0
        for _, of_group in groupby(groups):
            end = start + len(list(of_group))
            for first in range(start, end, self.most):
                yield first, min(end, first + self.most)
            start = end

    def operated(self, stack: Tensor, numbers: Mapping[str, float]) -> Tensor:
        """Return the result of the matrix operation, of matrices of one group with its numbers."""
        told: list[Any] = [
            numbers[self._number_names[x]] if isinstance(x, Value) else x
            for x in self._operation.operands[1:]
        ]
        with torch.no_grad():
            return orthogonalized_stack(stack, *told, *self._operation.settings).contiguous()
