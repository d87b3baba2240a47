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
    current_stream_object,
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
        self._captured_content = b""
        self._next = 0
        self._marks: list[Marker | None] = [None, None]

    def _buffers(self, count: int) -> Tensor:
        shape = (count, *self._table.shape)
        return torch.zeros(shape, dtype=self._table.dtype, pin_memory=self._is_pinned)

    @property
    def is_written_by_graphs(self) -> bool:
        """Whether a graph writes to the table at each replay."""
        return bool(self._captured)

    def buffer(self) -> Tensor:
        """Return a buffer that no copy reads any more; what it holds is from an earlier step."""
        if not self._is_pinned:
            return self._slots[0]
        if is_capturing(self._table.device):
            if self._spare is None:
                raise RuntimeError(
                    "what the optimizer has to send has changed twice without a step outside of a "
                    "CUDA graph's capture: take one optimizer.step() before each capture"
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

    def put(self, content: bytes) -> None:
        """Have the table hold these bytes; in a graph, at each of its replays."""
        if is_capturing(self._table.device) and content == self._captured_content:
            self.send(self._captured[-1][0])  # the same again needs no buffer of its own
            return
        buffer = self.buffer()
        ctypes.memmove(buffer.data_ptr(), content, len(content))
        if is_capturing(self._table.device):
            self._captured_content = content
        self.send(buffer)

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
        self._streams = {current_stream(device): current_stream_object(device)}
        self._kept: list[Tensor] = []
        for name, numbers in contents.items():
            self.put(name, numbers)
        for name, size in sizes.items():
            self.add(name, size)
        self._grads_staging = Staging(self._tables["grads"])
        self._numbers_staging = Staging(self._tables["numbers"])
        self._scalars_staging: Staging | None = None
        self._sent_grads = self._sent_numbers = b""
        nothing = {kind: torch.zeros(1, dtype=d, device=device) for kind, d in _DTYPES.items()}
        self._nothing = {name: nothing[kind] for name, kind in TABLES.items()}

    def add(self, name: str, size: int) -> None:
        """Make a table of so many numbers, zeros at first."""
        dtype = _DTYPES[TABLES[name]]
        self._put(name, torch.zeros(max(1, size), dtype=dtype, device=self.device))

    def __contains__(self, name: str) -> bool:
        return name in self._tables

    def __getitem__(self, name: str) -> Tensor:
        return self._tables[name]

    def put(self, name: str, numbers: Any) -> None:
        """Make a table of these numbers; of one, if there are none."""
        plain = np.asarray(numbers).reshape(-1)
        if not plain.size:
            self.add(name, 1)
            return
        table = torch.from_numpy(plain.copy()).to(_DTYPES[TABLES[name]])
        self._put(name, table.to(self.device))

    def _put(self, name: str, table: Tensor) -> None:
        self._packed.clear()
        self._tables[name] = self.kept(table)

    def kept(self, memory: Tensor) -> Tensor:
        """Return memory that kernels use; once dropped it waits for all streams they ran on."""
        self._kept.append(memory)
        for stream in self._streams.values():
            if stream is not None:
                memory.record_stream(stream)
        return memory

    def used_on_this_stream(self) -> None:
        """Count the current stream among those that kernels run on."""
        stream = current_stream(self.device)
        if stream not in self._streams:
            found = self._streams[stream] = current_stream_object(self.device)
            for memory in self._kept:
                memory.record_stream(found)

    @property
    def is_in_a_graph(self) -> bool:
        """Whether a graph that was captured reads them."""
        return self._grads_staging.is_written_by_graphs

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
        staging = self._grads_staging
        now = memoryview(addresses)[: len(self._tables["grads"])].tobytes()
        is_captured = staging.is_written_by_graphs or is_capturing(self.device)
        if now != self._sent_grads or is_captured:
            staging.put(now)
            self._sent_grads = now

    def send_numbers(self, numbers: array[float]) -> None:
        """Have the device know the groups' numbers.

        What a graph is captured with it would keep: it sends none if they have not changed.
        """
        staging, now = self._numbers_staging, numbers.tobytes()
        if now != self._sent_numbers or staging.is_written_by_graphs:
            staging.put(now)
            self._sent_numbers = now

    def forget_numbers(self) -> None:
        """Have the numbers sent once more, something else having been put in their place."""
        self._sent_numbers = b""

    def scalars_buffer(self) -> Tensor:
        """Return where the host puts this step's scalars."""
        if self._scalars_staging is None:
            self._scalars_staging = Staging(self._tables["scalars"])
        return self._scalars_staging.buffer()

    def send_scalars(self, buffer: Tensor) -> None:
        """Copy this step's scalars to the device."""
        assert self._scalars_staging is not None
        self._scalars_staging.send(buffer)
