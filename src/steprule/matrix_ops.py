"""Operations on whole tensors, for rules that are not elementwise.

Only the eager engine carries them out: recording such a rule is an error.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def mean_square(x: Tensor, axis: int | None = None) -> Any:
    """Mean of the squares over one axis (kept, with length 1), or over all elements."""
    if axis is None:
        return x.square().mean() if x.numel() else x.new_zeros(())
    return x.square().mean(dim=axis, keepdim=True)


def mean(x: Tensor, axis: int) -> Tensor:
    """Mean over one axis, which is kept with length 1."""
    return x.mean(dim=axis, keepdim=True)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """Matrix product over the last two axes."""
    return a @ b


def orthogonalized(
    x: Tensor, coefficients: tuple[float, float, float], steps: int, eps: float
) -> Tensor:
    """Return ``x`` with its singular values drawn towards 1: U V^T, roughly, where x = U S V^T.

    A quintic Newton-Schulz iteration X <- a X + b (X X^T) X + c (X X^T)^2 X on X = x / max(|x|,
    eps), in bfloat16, whose coarse result is all that the method asks for.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.
    """
    a, b, c = coefficients
    is_tall = x.size(0) > x.size(1)
    work = (x.T if is_tall else x).to(torch.bfloat16)
    work = work / work.norm().clamp(min=eps)
    for _ in range(steps):
        gram = work @ work.T
        polynomial = torch.addmm(gram, gram, gram, beta=b, alpha=c)
        work = torch.addmm(work, polynomial, work, beta=a)
    return (work.T if is_tall else work).to(x.dtype)
