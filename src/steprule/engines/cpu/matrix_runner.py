"""The kernel of a rule with a matrix operation, for parameters of one shape.

The operation stands between two passes over the elements: the first leaves what it is of, in the
dtype of the iteration, in a stack of matrices; torch's batched products work on that; the second
reads the result and updates. Stack after stack, each as large as a processor's cache, so that
neither copies nor much memory are needed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence

import torch

from steprule.engines.cpu.runner import UPDATE, KernelRunner
from steprule.engines.engine import Leaf
from steprule.engines.kernels.address_runner import CHUNK
from steprule.engines.kernels.matrix_stacks import MatrixStacks
from steprule.engines.stages import Stages
from steprule.language.form import Form


class MatrixRunner(KernelRunner):
    """One kernel, and a matrix operation in the midst of it."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        super().__init__(form, leaves)
        self._chunks_each = -(-leaves[0].param.numel() // CHUNK)
        self._stacks = MatrixStacks(form, leaves)
        # Stacks are there for a moment: another thread's step must not put its own in their place.
        self._lock, self._process = threading.Lock(), os.getpid()

    def _run_passes(self, addresses: Sequence[int]) -> Stages:
        yield from ()
        if self._process != os.getpid():  # a child: the thread that had the lock is not there
            self._lock, self._process = threading.Lock(), os.getpid()
        with self._lock:
            self._run_stacks(addresses)

    def _run_stacks(self, addresses: Sequence[int]) -> None:
        column, stacks = self._columns[-1], self._stacks
        for first, last in stacks.ranges:
            if not any(addresses[first:last]):
                continue
            chunks = first * self._chunks_each, last * self._chunks_each
            stack = torch.empty(last - first, *stacks.shape, dtype=stacks.dtype)
            for i in range(first, last):
                column[i] = stack[i - first].data_ptr()
                if not addresses[i]:
                    stack[i - first].zero_()
            self._over_chunks(self._reductions, 0, *chunks)
            made = stacks.operated(stack, self.numbers_of(self._groups[first]))
            for i in range(first, last):
                column[i] = made[i - first].data_ptr()
            self._over_chunks(self._library, UPDATE, *chunks)
