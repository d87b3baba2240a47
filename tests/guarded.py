"""Tensors in memory that is watched: what lies between and beside their elements, and what they
left behind, must stay as it is."""

from __future__ import annotations

import torch

# Elements on either side of a guarded tensor: more than a vector register, or a cache line, holds.
PAD = 40
# Exact in every dtype.
MARK = 7.0


class Watch:
    """Checks that memory which is nobody's any more, or never was, has not been written."""

    def __init__(self) -> None:
        self._buffers: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._retired: list[tuple[torch.Tensor, torch.Tensor]] = []

    def guarded(self, values: torch.Tensor, gaps: bool = False) -> torch.Tensor:
        """A copy of ``values`` amid marks; with gaps, also between its last axis's elements."""
        every = 2 if gaps and values.dim() else 1
        buffer = torch.full((values.numel() * every + 2 * PAD,), MARK, dtype=values.dtype)
        inner = buffer[PAD : PAD + values.numel() * every]
        free = torch.ones(len(buffer), dtype=torch.bool)
        free[PAD : PAD + values.numel() * every : every] = False
        view = inner[::every].view(values.shape)
        view.copy_(values)
        self._buffers.append((buffer, free))
        return view

    def retire(self, tensor: torch.Tensor) -> None:
        """Nothing may write to this tensor from now on; its memory is kept from being reused."""
        self._retired = [*self._retired[-30:], (tensor.detach(), tensor.detach().clone())]

    def forget(self, tensor: torch.Tensor) -> None:
        """A retired tensor whose memory is in use after all."""
        place = tensor.data_ptr()
        self._retired = [pair for pair in self._retired if pair[0].data_ptr() != place]

    def check(self) -> None:
        """Raise AssertionError where something was written that should not have been."""
        for buffer, free in self._buffers:
            assert (buffer[free] == MARK).all(), "written beside a tensor"
        for tensor, copy in self._retired:
            assert torch.equal(tensor, copy), "written to memory that was given up"
