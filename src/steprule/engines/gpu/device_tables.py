"""The tables that kernels read on the device, and how numbers get there.

What stays is copied once. Gradients' addresses are copied when they have moved; what the host
computes at each step goes through a ring of pinned buffers, so that no step waits for the one
before. A captured graph would read such a buffer again at each replay: while a graph is captured,
copies come from buffers that nothing else will write to.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from steprule.engines.gpu.arguments import TABLES
from steprule.engines.gpu.programs.streams import (
    Marker,
    current_stream,
    is_capturing,
    mark,
)

# Copies on their way at a time; and after so many of them a mark says that they have arrived.
_SLOTS = 8
_MARKED = _SLOTS // 2

T = TypeVar("T")
_DTYPES = {"i64": torch.int64, "fp64": torch.float64, "fp32": torch.float32}


class Staging:
    """Buffers on the host for a table that is written again and again.

    Args:
        table: on the device.
    """

    def __init__(self, table: Tensor) -> None:
        self._table = table
        self._is_pinned = table.device.type == "cuda"
        count = _SLOTS if self._is_pinned else 1
        self._slots = self._buffers(count)
        # One for a graph's capture, during which none can be made.
        self._spare = self._buffers(1) if self._is_pinned else None
        self._captured: list[Tensor] = []
        self._next = 0
        self._marks: list[Marker | None] = [None, None]

    def _buffers(self, count: int) -> Tensor:
        shape = (count, *self._table.shape)
        return torch.zeros(shape, dtype=self._table.dtype, pin_memory=self._is_pinned)

    def is_shared_with_graphs(self) -> bool:
        """Tell whether a graph writes to the table, or is about to."""
        return bool(self._captured) or is_capturing(self._table.device)

    def buffer(self) -> Tensor:
        """Return a buffer that no copy reads any more; what it holds is from an earlier step."""
        if not self._is_pinned:
            return self._slots[0]
        if is_capturing(self._table.device):
            if self._spare is None:
                raise RuntimeError(
                    "a second CUDA graph is captured without a step outside of it in between: take "
                    "one optimizer.step() before each capture"
                )
            buffer = self._spare[0]
            self._captured.append(self._spare)
            self._spare = None
            return buffer
        if self._spare is None:
            self._spare = self._buffers(1)
        half, place = divmod(self._next, _MARKED)
        earlier = self._marks[half]
        if place == 0 and earlier is not None:
            earlier.wait()
        return self._slots[self._next]

    def send(self, buffer: Tensor) -> None:
        """Copy a buffer to the table, in the order of the current stream."""
        self._table.copy_(buffer, non_blocking=self._is_pinned)
        if not self._is_pinned or buffer.data_ptr() != self._slots[self._next].data_ptr():
            return
        half, place = divmod(self._next, _MARKED)
        if place == _MARKED - 1:
            self._marks[half] = mark(self._table.device)
        self._next = (self._next + 1) % _SLOTS


class DeviceTables:
    """The tables of one runner.

    Args:
        device: where they are.
        contents: of those that stay as they are, or are changed by kernels alone.
        sizes: of those that are filled later: how many numbers each has.
    """

    def __init__(
        self, device: torch.device, contents: Mapping[str, Any], sizes: Mapping[str, int]
    ) -> None:
        self.device = device
        self._tables: dict[str, Tensor] = {}
        self._packed: dict[int, Any] = {}
        for name, numbers in contents.items():
            self._tables[name] = _on_device(numbers, name, device)
        for name, size in sizes.items():
            self.add(name, size)
        self._grads_staging = Staging(self._tables["grads"])
        self._scalars_staging: Staging | None = None
        self._sent_grads = b""
        self._streams = {current_stream(device)}
        nothing = {kind: torch.zeros(1, dtype=d, device=device) for kind, d in _DTYPES.items()}
        self._nothing = {name: nothing[kind] for name, kind in TABLES.items()}

    def add(self, name: str, size: int) -> None:
        """Make a table of so many numbers, zeros at first."""
        dtype = _DTYPES[TABLES[name]]
        self._packed.clear()
        self._tables[name] = torch.zeros(max(1, size), dtype=dtype, device=self.device)

    def __contains__(self, name: str) -> bool:
        return name in self._tables

    def __getitem__(self, name: str) -> Tensor:
        return self._tables[name]

    def put(self, name: str, table: Tensor) -> None:
        """Have a tensor as a table."""
        self._packed.clear()
        self._tables[name] = table

    def used_on_this_stream(self) -> None:
        """Keep the memory from others until the current stream is done with it, once dropped."""
        stream = current_stream(self.device)
        if stream not in self._streams:
            self._streams.add(stream)
            for table in self._tables.values():
                table.record_stream(torch.cuda.current_stream(self.device))

    def arguments(self) -> list[Tensor]:
        """Return a tensor for each table, in the order of ``TABLES``."""
        return [self._tables.get(name, self._nothing[name]) for name in TABLES]

    def packed(self, parameters: int, pack: Callable[[int, DeviceTables], T]) -> T:
        """Return the arguments as ``pack`` makes them for so many parameters, made once."""
        made = self._packed.get(parameters)
        if made is None:
            made = self._packed[parameters] = pack(parameters, self)
        return cast("T", made)

    @property
    def bytes(self) -> int:
        """How much memory they take on the device."""
        return sum(table.nbytes for table in self._tables.values())

    def send_grads(self, addresses: array[int]) -> None:
        """Have the device know the gradients' addresses.

        They are sent if they are others than before; and always where a graph is being captured, or
        has been: it sends its own at each replay.
        """
        table, staging = self._tables["grads"], self._grads_staging
        now = memoryview(addresses)[: len(table)].tobytes()
        if now == self._sent_grads and not staging.is_shared_with_graphs():
            return
        buffer = staging.buffer()
        ctypes.memmove(buffer.data_ptr(), now, len(now))
        staging.send(buffer)
        self._sent_grads = now

    def scalars_buffer(self) -> Tensor:
        """Return where the host puts this step's scalars."""
        if self._scalars_staging is None:
            self._scalars_staging = Staging(self._tables["scalars"])
        return self._scalars_staging.buffer()

    def send_scalars(self, buffer: Tensor) -> None:
        """Copy this step's scalars to the device."""
        assert self._scalars_staging is not None
        self._scalars_staging.send(buffer)


def _on_device(numbers: Any, name: str, device: torch.device) -> Tensor:
    plain = np.asarray(numbers).reshape(-1)
    table = torch.from_numpy(plain.copy()).to(_DTYPES[TABLES[name]])
    return table.to(device) if table.numel() else torch.zeros(1, dtype=table.dtype, device=device)
