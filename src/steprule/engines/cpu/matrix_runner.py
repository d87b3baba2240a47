"""The kernel of a rule with a matrix operation, for parameters of one shape.

The operation stands between two passes over the elements: the first leaves what it is of, in the
dtype of the iteration, in a stack of matrices; torch's batched products work on that; the second
reads the result and updates. Stack after stack, each as large as a processor's cache, so that
neither copies nor much memory are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from steprule.engines.cpu.runner import UPDATE, KernelRunner
from steprule.engines.engine import Leaf
from steprule.engines.kernels.address_runner import CHUNK
from steprule.engines.kernels.matrix_operands import numbers_by_operand
from steprule.engines.stages import Stages
from steprule.language.form import Form
from steprule.language.recording import Value
from steprule.matrix_ops.orthogonalization import (
    iteration_dtype,
    orthogonalized_stack,
    stack_length,
)


class MatrixRunner(KernelRunner):
    """One kernel, and a matrix operation in the midst of it."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        super().__init__(form, leaves)
        param = leaves[0].param
        self._shape = param.shape[0], param.numel() // max(param.shape[0], 1)
        self._dtype = iteration_dtype(param.device)
        self._chunks_each = -(-param.numel() // CHUNK)
        recording = form.recording()
        self._operation = recording.matrix_operations[0]
        self._number_names = numbers_by_operand(recording)
        self._stacks = list(self._stacks_of_leaves())
        # Stacks are there for a moment: another thread's step must not put its own in their place.
        self._lock = threading.Lock()

    def _stacks_of_leaves(self) -> Iterator[tuple[int, int]]:
        """Yield which leaves make a stack: neighbours of one group, as many as fit in the cache."""
        most = stack_length(*self._shape, self._dtype, self.params[0].device)
        start = 0
        for _, of_group in groupby(self._groups):
            end = start + len(list(of_group))
            for first in range(start, end, most):
                yield first, min(end, first + most)
            start = end

    def _run_passes(self, addresses: Sequence[int]) -> Stages:
        yield from ()
        with self._lock:
            self._run_stacks(addresses)

    def _run_stacks(self, addresses: Sequence[int]) -> None:
        column = self._columns[-1]
        for first, last in self._stacks:
            if not any(addresses[first:last]):
                continue
            chunks = first * self._chunks_each, last * self._chunks_each
            stack = torch.empty(last - first, *self._shape, dtype=self._dtype)
            for i in range(first, last):
                column[i] = stack[i - first].data_ptr()
                if not addresses[i]:
                    stack[i - first].zero_()
            self._over_chunks(self._reductions, 0, *chunks)
            made = self._operated(stack, self._groups[first])
            for i in range(first, last):
                column[i] = made[i - first].data_ptr()
            self._over_chunks(self._library, UPDATE, *chunks)

    def _operated(self, stack: Tensor, group: int) -> Tensor:
        """Return the result of the matrix operation, of matrices of one group."""
        count = len(self._hyperparameters)
        start = self._row_of[group] * count
        numbers = dict(
            zip(self._hyperparameters, self._numbers[start : start + count], strict=True)
        )
        told: list[Any] = [
            numbers[self._number_names[x]] if isinstance(x, Value) else x
            for x in self._operation.operands[1:]
        ]
        with torch.no_grad():
            return orthogonalized_stack(stack, *told, *self._operation.settings).contiguous()
