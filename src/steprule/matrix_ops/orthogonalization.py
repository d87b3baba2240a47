"""Newton-Schulz iterations towards the nearest orthogonal matrix, for many matrices at once.

On X = x / max(|x|, eps), five times or so (of a tall matrix X^T X is taken, on the other side)::

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
import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

METHODS = ("standard", "gram", "auto")
# "auto" takes "gram" from here on: one side so many times the other.
GRAM_FROM = 2
# After so many iterations on R it is computed from X anew.
RESTART_AFTER = 2
# Bytes of one stack. On a CPU it stays in the caches with what its iterations need; a GPU wants
# more work at a time, and has the memory.
CPU_STACK = 2 << 20
DEVICE_STACK = 64 << 20
# Where launches cost more than products, a matrix joins a stack whose short side is a little longer
# than its own: rows of zeros stay zeros, and change nothing. So much shorter it may be.
PADS_FROM = 7 / 8


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
    for rows, columns, places in stacks_of([(x.shape, x.device) for x in xs]):
        device = xs[places[0]].device
        dtype = iteration_dtype(device)
        most = stack_length(rows, columns, dtype, device)
        for start in range(0, len(places), most):
            chunk = places[start : start + most]
            stack = _stacked([xs[i].flatten(1) for i in chunk], rows, columns, dtype)
            made = orthogonalized_stack(stack, a, b, c, eps, steps, method)
            for i, matrix in zip(chunk, made.unbind(), strict=True):
                height = xs[i].shape[0]
                own = matrix[:height, : xs[i].numel() // height]
                found[i] = own.to(xs[i].dtype).reshape(xs[i].shape)
    return found


def stacks_of(
    matrices: Sequence[tuple[Sequence[int], torch.device]],
) -> list[tuple[int, int, list[int]]]:
    """Return which matrices make a stack: its rows and columns, and where they are.

    Equal ones do; on other devices than the CPU, those of nearly the same short side, too. Empty
    ones are left out.

    Args:
        matrices: their shapes (what has more than two axes is flattened) and devices.
    """
    alike: dict[tuple[int, int, torch.device], list[int]] = {}
    for i, (shape, device) in enumerate(matrices):
        columns = math.prod(shape[1:])
        if shape[0] and columns:
            alike.setdefault((shape[0], columns, device), []).append(i)
    found: list[tuple[int, int, list[int]]] = []
    open_to: dict[tuple[bool, int, torch.device], tuple[int, list[int]]] = {}
    for (rows, columns, device), places in sorted(
        alike.items(), key=lambda one: -min(one[0][0], one[0][1])
    ):
        short, side = min(rows, columns), (rows > columns, max(rows, columns), device)
        longest, joined = open_to.get(side, (0, []))
        if joined and device.type != "cpu" and short >= PADS_FROM * longest:
            joined += places
        else:
            own = list(places)
            open_to[side] = short, own
            found.append((rows, columns, own))
    return found


def orthogonalized_stack(
    stack: Tensor, a: float, b: float, c: float, eps: float, steps: int, method: str
) -> Tensor:
    """Return a stack of matrices, (count, rows, columns), made nearly orthogonal, in its dtype.

    The stack itself may be overwritten.
    """
    norm = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True).clamp(min=eps)
    if torch.is_grad_enabled():
        x = stack / norm
    elif not stack.is_cpu:
        x = stack.div_(norm)
    else:  # a division by one number at a time is several times faster
        x = stack
        for matrix, one in zip(stack.unbind(), norm.flatten().unbind(), strict=True):
            matrix.div_(one)
    short, long = sorted(stack.shape[1:])
    is_gram = method == "gram" or (method == "auto" and long >= GRAM_FROM * short)
    is_tall = stack.shape[1] > stack.shape[2]
    iterate = _gram if is_gram else _standard
    return iterate(x, a, b, c, steps, is_tall=is_tall) if steps else x


def stack_length(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> int:
    """Return how many matrices of a shape make a stack: at least one."""
    most = CPU_STACK if device.type == "cpu" else DEVICE_STACK
    return max(1, most // max(1, rows * columns * dtype.itemsize))


def iteration_dtype(device: torch.device) -> torch.dtype:
    """Return bfloat16 where the hardware multiplies it, else float32."""
    return torch.bfloat16 if device.type != "cpu" or _has_bfloat16() else torch.float32


@functools.cache
def _has_bfloat16() -> bool:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in names)


def _stacked(matrices: Sequence[Tensor], rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    if torch.is_grad_enabled():
        return torch.stack(
            [pad(m, (0, columns - m.shape[1], 0, rows - m.shape[0])) for m in matrices]
        ).to(dtype)
    shape = len(matrices), rows, columns
    stack = torch.empty(shape, dtype=dtype, device=matrices[0].device)
    for place, matrix in zip(stack.unbind(), matrices, strict=True):
        if matrix.shape != place.shape:
            place.zero_()
        place[: matrix.shape[0], : matrix.shape[1]].copy_(matrix)
    return stack


def _standard(x: Tensor, a: float, b: float, c: float, steps: int, *, is_tall: bool) -> Tensor:
    for _ in range(steps):
        gram = _gram_of(x, is_tall)
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        pair = (x, polynomial) if is_tall else (polynomial, x)
        x = torch.baddbmm(x, *pair, beta=a)
    return x


def _gram(x: Tensor, a: float, b: float, c: float, steps: int, *, is_tall: bool) -> Tensor:
    gram = _gram_of(x, is_tall)
    product: Tensor | None = None  # of the factors (a I + Z) since X was computed
    for step in range(1, steps + 1):
        z = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if product is None:
            product = z + a * torch.eye(z.shape[1], dtype=z.dtype, device=z.device)
        else:
            product = torch.baddbmm(product, product, z, beta=a)
        if step == RESTART_AFTER < steps:
            x, product = _times(x, product, is_tall), None
            gram = _gram_of(x, is_tall)
        elif step < steps:
            scaled = torch.baddbmm(gram, gram, z, beta=a)
            gram = torch.baddbmm(scaled, z, scaled, beta=a)
    return x if product is None else _times(x, product, is_tall)


def _gram_of(x: Tensor, is_tall: bool) -> Tensor:
    """Return the products of a matrix's rows, or columns if these are fewer."""
    return torch.bmm(x.mT, x) if is_tall else torch.bmm(x, x.mT)


def _times(x: Tensor, factor: Tensor, is_tall: bool) -> Tensor:
    return torch.bmm(x, factor) if is_tall else torch.bmm(factor, x)
