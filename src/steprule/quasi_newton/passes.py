"""The three passes over the history that make a direction, each reading its matrix once.

``passes_for`` picks who runs them: compiled kernels (kernels.py) for a history in the CPU's memory,
torch's matrix-vector products anywhere else, and where it is too small for a kernel to matter.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from steprule.engines.dispatch_modes import is_watched

# Below this many bytes a kernel may not be worth the second that it takes to compile, once.
LARGE: int = 2**18
# Columns converted at once when the history is narrower than the vectors.
BLOCK: int = 65_536


class Passes(Protocol):
    """What a direction needs of the matrices; ``rows`` are those of S or of Y in use."""

    def project(self, rows: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``rows @ one`` and ``rows @ other``, in float64 on the CPU."""

    def peel(self, rows: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``q = grad - weights @ rows`` and ``rows @ q`` (the latter float64 on the CPU)."""

    def combine(self, rows: Tensor, weights: Tensor, scale: float, vector: Tensor) -> Tensor:
        """Return ``-(scale * vector + weights @ rows)``; may overwrite ``vector``."""


class TorchPasses:
    """The passes by ``torch.mv``, in blocks of columns if the history has another dtype."""

    def project(self, rows: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        first, second = _zeros(rows), _zeros(rows)
        for part in _columns(rows, one.dtype):
            block = rows[:, part].to(one.dtype)
            first += block.mv(one[part]).cpu()
            second += block.mv(other[part]).cpu()
        return first, second

    def peel(self, rows: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        weights = weights.to(device=grad.device, dtype=grad.dtype)
        rest, products = torch.empty_like(grad), _zeros(rows)
        for part in _columns(rows, grad.dtype):
            block = rows[:, part].to(grad.dtype)
            torch.addmv(grad[part], block.t(), weights, alpha=-1, out=rest[part])
            products += block.mv(rest[part]).cpu()
        return rest, products

    def combine(self, rows: Tensor, weights: Tensor, scale: float, vector: Tensor) -> Tensor:
        weights = weights.to(device=vector.device, dtype=vector.dtype)
        for part in _columns(rows, vector.dtype):
            block = rows[:, part].to(vector.dtype)
            vector[part].addmv_(block.t(), weights, beta=-scale, alpha=-1)
        return vector


def _zeros(rows: Tensor) -> Tensor:
    return torch.zeros(rows.shape[0], dtype=torch.float64)


def _columns(rows: Tensor, dtype: torch.dtype) -> list[slice]:
    size = rows.shape[1]
    step = size if rows.dtype == dtype else BLOCK
    return [slice(start, min(start + step, size)) for start in range(0, size, max(step, 1))]


def passes_for(rows: Tensor, vector: Tensor) -> Passes:
    """Who computes the passes for this history and these vectors."""
    is_large = rows.numel() * rows.element_size() >= LARGE
    if rows.device.type == "cpu" and is_large and not is_watched():
        from steprule.engines.compiler import can_convert_half
        from steprule.quasi_newton.kernels import NUMBERS, STORED, KernelPasses

        if rows.dtype in STORED and vector.dtype in NUMBERS and can_convert_half():
            return KernelPasses()
    return TorchPasses()
