"""Rules with products of matrices on a device: stacks of them between two launches.

The first kernel writes what the operation is of to a stack, torch's batched products work on that,
and the second reads the result where the stack was. There is one stack's room for all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from steprule.engines.engine import Leaf, Numbers
from steprule.engines.gpu.programs.streams import on_device
from steprule.engines.gpu.runner import TritonRunner
from steprule.engines.kernels.matrix_stacks import MatrixStacks
from steprule.engines.stages import Stages
from steprule.language.form import Form


class MatrixTritonRunner(TritonRunner):
    """The kernels of a form with a matrix operation in their midst."""

    def __init__(self, form: Form, leaves: Sequence[Leaf]) -> None:
        self._stacks = MatrixStacks(form, leaves)
        super().__init__(form, leaves)
        self._chunks_each = self._chunk_count // len(leaves)

    def _make_device_tables(self) -> None:
        stacks = self._stacks
        longest = max(last - first for first, last in stacks.ranges)
        self._room = torch.zeros(longest, *stacks.shape, dtype=stacks.dtype, device=self.device)
        places: list[Any] = [matrix.data_ptr() for matrix in self._room]
        ranges = (places[: last - first] for first, last in stacks.ranges)
        self._columns[-1] = list(chain.from_iterable(ranges))
        super()._make_device_tables()
        self._tables.kept(self._room)

    def set_numbers(self, group: int, numbers: Numbers) -> None:
        """Put a group's numbers in force; for what torch's products are told, the host waits."""
        told = {n: float(numbers[n]) for n in self._stacks.number_names}
        super().set_numbers(group, {**numbers, **told})

    def note(self) -> str:
        return f"{super().note()}, and {self._room.nbytes / 1024:.1f} KiB for stacks of matrices"

    def _kernel_names(self) -> list[str]:
        return [name for name in super()._kernel_names() if not name.startswith("finish")]

    def _run_passes(self, addresses: Sequence[int]) -> Stages:
        yield from ()
        with torch.no_grad(), on_device(self.device):
            for first, last in self._stacks.ranges:
                if any(addresses[first:last]):
                    self._run_stack(first, last, addresses)

    def _run_stack(self, first: int, last: int, addresses: Sequence[int]) -> None:
        stack = self._room[: last - first]
        chunks, begin = (last - first) * self._chunks_each, first * self._chunks_each
        if not all(addresses[first:last]):
            stack.zero_()
        self._launch("reduce_0", chunks, begin)
        made = self._stacks.operated(stack, self.numbers_of(self._groups[first]))
        if made.data_ptr() != stack.data_ptr():
            stack.copy_(made)
        self._launch("update", chunks, begin)
