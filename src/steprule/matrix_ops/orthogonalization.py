"""Newton-Schulz iterations towards the nearest orthogonal matrix, for many matrices at once.

On X = x / max(|x|, eps), wide (a tall matrix is transposed), five times or so::

    X <- a X + (b X X^T + c (X X^T)^2) X

Equal shapes are stacked, since small products by themselves keep no processor busy. The numbers are
coarse by design: the iteration ends with singular values between 0.7 and 1.2, and bfloat16 changes
them by about 1 % (``docs/matrices.md`` has what was measured).

``"gram"`` iterates on the n x n matrix R = X X^T instead, and multiplies by X only at the end::

    Z = b R + c R^2;  Q <- Q (a I + Z);  R <- (a I + Z) R (a I + Z);  at last X <- Q X

which is the same in exact arithmetic and takes fewer operations the wider X is. In half precision
the errors of R grow; so X is computed, and R from it, once more after the second iteration.

Sources: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; Zhang,
Amsel, Chen, Dao, "Gram Newton-Schulz", 2026.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

METHODS = ("standard", "gram", "auto")
# "auto" takes "gram" from here on: one side so many times the other.
GRAM_FROM = 2
# After so many iterations on R it is computed from X anew.
RESTART_AFTER = 2
# Memory for one stack and what its iterations need, in bytes.
MOST_BYTES = 64 << 20


def orthogonalized_list(
    xs: Sequence[Tensor], a: float, b: float, c: float, eps: float, steps: int, method: str
) -> list[Tensor]:
    """Return each of ``xs``, taken as a matrix, made nearly orthogonal; in its shape and dtype.

    Args:
        xs: of any shapes with two axes or more; the first axis are the rows.
        a: coefficients of the iteration, and b and c.
        b: see ``a``.
        c: see ``a``.
        eps: smallest norm that is divided by.
        steps: how many iterations.
        method: one of :data:`METHODS`.
    """
    found: list[Tensor] = list(xs)
    by_shape: dict[tuple[int, int, torch.device], list[int]] = {}
    for i, x in enumerate(xs):
        rows = x.shape[0]
        columns = x.numel() // max(rows, 1)
        if x.numel():
            key = min(rows, columns), max(rows, columns), x.device
            by_shape.setdefault(key, []).append(i)
    for (short, long, device), places in by_shape.items():
        is_gram = method == "gram" or (method == "auto" and long >= GRAM_FROM * short)
        iterate = _gram if is_gram else _standard
        dtype = iteration_dtype(device)
        for chunk in _chunks(places, short, long, dtype.itemsize):
            stack = _stacked([xs[i] for i in chunk], short, long, dtype)
            norm = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
            stack = stack / norm.clamp(min=eps)
            made = iterate(stack, a, b, c, steps) if steps else stack
            for i, matrix in zip(chunk, made.unbind(), strict=True):
                x = xs[i]
                whole = matrix.T if x.shape[0] > short else matrix
                found[i] = whole.to(x.dtype).reshape(x.shape)
    return found


def iteration_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, else float32."""
    return torch.bfloat16 if device.type != "cpu" or _has_bfloat16() else torch.float32


@functools.cache
def _has_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _chunks(places: Sequence[int], short: int, long: int, itemsize: int) -> Iterator[Sequence[int]]:
    """Yield as many at a time as there is memory for: two of X, four of its Gram matrix."""
    most = max(1, MOST_BYTES // (itemsize * (2 * short * long + 4 * short * short)))
    for start in range(0, len(places), most):
        yield places[start : start + most]


def _stacked(xs: Sequence[Tensor], short: int, long: int, dtype: torch.dtype) -> Tensor:
    wide = []
    for x in xs:
        matrix = x.flatten(1) if x.ndim != 2 else x
        wide.append(matrix.T if matrix.shape[0] > short else matrix)
    if torch.is_grad_enabled():
        return torch.stack(wide).to(dtype)
    stack = torch.empty(len(xs), short, long, dtype=dtype, device=xs[0].device)
    for place, matrix in zip(stack.unbind(), wide, strict=True):
        place.copy_(matrix)
    return stack


def _standard(x: Tensor, a: float, b: float, c: float, steps: int) -> Tensor:
    for _ in range(steps):
        gram = torch.bmm(x, x.mT)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x


def _gram(x: Tensor, a: float, b: float, c: float, steps: int) -> Tensor:
    gram = torch.bmm(x, x.mT)
    product: Tensor | None = None  # of the factors (a I + Z) since X was computed
    for step in range(1, steps + 1):
        z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if product is None:
            product = z.clone()
            product.diagonal(dim1=1, dim2=2).add_(a)
        else:
            product = torch.baddbmm(product, product, z, beta=a)
        if step == RESTART_AFTER < steps:
            x, product = torch.bmm(product, x), None
            gram = torch.bmm(x, x.mT)
        elif step < steps:
            scaled = torch.baddbmm(gram, gram, z, beta=a)
            gram = torch.baddbmm(scaled, z, scaled, beta=a)
    return x if product is None else torch.bmm(product, x)
