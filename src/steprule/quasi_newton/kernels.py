"""The passes over a large history as Numba kernels: each byte is read from memory once.

Torch's products cannot be fused: ``project`` would read S twice and ``peel`` Y twice. Here the
columns go in blocks; what a block needs again is still in the cache. Dot products add blocks up
in float64. Imported only when a history is large enough (passes.py), since it imports Numba.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from steprule.engines.workers import workers

# Streams are longest where only the vectors must stay in the cache; `peel` also keeps the block
# of rows itself (100 rows of 2048 float32 are 0.8 MB, one core's second-level cache).
STREAM_COLUMNS = 16_384
PEEL_BYTES = 800 * 1024


def _number(_typing: Any, stored: Any) -> tuple[Any, Any]:
    """A stored element as a number: bfloat16 comes as its 16 bits, all else is itself."""
    if stored == types.uint16:

        def widen(_context: Any, b: Any, _signature: Any, args: Any) -> Any:
            bits = b.shl(b.zext(args[0], ir.IntType(32)), ir.IntType(32)(16))
            return b.bitcast(bits, ir.FloatType())

        return types.float32(stored), widen

    def keep(_context: Any, _b: Any, _signature: Any, args: Any) -> Any:
        return args[0]

    return stored(stored), keep


number: Any = intrinsic(_number)


def _project(rows, one, other, start, stop, columns, first, second):  # type: ignore[no-untyped-def]
    last = rows.shape[0] - 1
    for left in range(start, stop, columns):
        right = min(left + columns, stop)
        g, y = one[left:right], other[left:right]
        for i in range(0, last + 1, 4):  # four rows at once: more memory streams in flight
            i1, i2, i3 = min(i + 1, last), min(i + 2, last), min(i + 3, last)
            r0, r1 = rows[i, left:right], rows[i1, left:right]
            r2, r3 = rows[i2, left:right], rows[i3, left:right]
            zero = one.dtype.type(0)
            g0, g1, g2, g3, y0, y1, y2, y3 = zero, zero, zero, zero, zero, zero, zero, zero
            for j in range(right - left):
                g0 += number(r0[j]) * g[j]
                g1 += number(r1[j]) * g[j]
                g2 += number(r2[j]) * g[j]
                g3 += number(r3[j]) * g[j]
                y0 += number(r0[j]) * y[j]
                y1 += number(r1[j]) * y[j]
                y2 += number(r2[j]) * y[j]
                y3 += number(r3[j]) * y[j]
            sums = ((i, g0, y0), (i + 1, g1, y1), (i + 2, g2, y2), (i + 3, g3, y3))
            for k, g_sum, y_sum in sums:
                if k <= last:
                    first[k] += g_sum
                    second[k] += y_sum


def _subtract(rows, weights, left, right, vector):  # type: ignore[no-untyped-def]
    """``vector -= weights @ rows`` on the columns from left to right."""
    count = rows.shape[0]
    whole = count - count % 4
    for i in range(0, whole, 4):
        r0, r1 = rows[i, left:right], rows[i + 1, left:right]
        r2, r3 = rows[i + 2, left:right], rows[i + 3, left:right]
        w0, w1, w2, w3 = weights[i], weights[i + 1], weights[i + 2], weights[i + 3]
        for j in range(right - left):
            vector[j] -= (
                w0 * number(r0[j]) + w1 * number(r1[j]) + w2 * number(r2[j]) + w3 * number(r3[j])
            )
    for i in range(whole, count):
        row, weight = rows[i, left:right], weights[i]
        for j in range(right - left):
            vector[j] -= weight * number(row[j])


def _peel(rows, weights, grad, start, stop, columns, rest, products):  # type: ignore[no-untyped-def]
    for left in range(start, stop, columns):
        right = min(left + columns, stop)
        q, g = rest[left:right], grad[left:right]
        for j in range(right - left):
            q[j] = g[j]
        subtract(rows, weights, left, right, q)
        for i in range(rows.shape[0]):
            row = rows[i, left:right]
            total = grad.dtype.type(0)
            for j in range(right - left):
                total += number(row[j]) * q[j]
            products[i] += total


def _combine(rows, weights, scale, start, stop, columns, vector):  # type: ignore[no-untyped-def]
    for left in range(start, stop, columns):
        right = min(left + columns, stop)
        v = vector[left:right]
        for j in range(right - left):
            v[j] *= -scale
        subtract(rows, weights, left, right, v)


def _compiled(function: Callable[..., None]) -> Any:
    # Sums may be reordered, or they could not be vectorized; nan and inf keep their meaning.
    options: dict[str, Any] = {
        "nogil": True,
        "error_model": "numpy",
        "fastmath": {"reassoc", "contract", "nsz", "arcp"},
    }
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder may be written to: compile in each process
        return numba.njit(**options)(function)


subtract = _compiled(_subtract)
project = _compiled(_project)
peel = _compiled(_peel)
combine = _compiled(_combine)


class KernelPasses:
    """The passes by kernels, on as many threads as torch would use."""

    def project(self, rows: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        r, g, y = _array(rows), _array(one), _array(other)
        parts = _parts(len(g))
        first, second = np.zeros((2, len(parts), len(r)))
        _run(
            lambda k, start, stop: project(
                r, g, y, start, stop, STREAM_COLUMNS, first[k], second[k]
            ),
            parts,
        )
        return torch.from_numpy(first.sum(0)), torch.from_numpy(second.sum(0))

    def peel(self, rows: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        rest = torch.empty_like(grad)
        r, g, q, w = _array(rows), _array(grad), _array(rest), _array(weights.to(grad.dtype))
        parts = _parts(len(g))
        products = np.zeros((len(parts), len(r)))
        columns = max(256, PEEL_BYTES // (r.itemsize * max(len(r), 1)) // 64 * 64)
        _run(
            lambda k, start, stop: peel(r, w, g, start, stop, columns, q, products[k]),
            parts,
        )
        return rest, torch.from_numpy(products.sum(0))

    def combine(self, rows: Tensor, weights: Tensor, scale: float, vector: Tensor) -> Tensor:
        r, v, w = _array(rows), _array(vector), _array(weights.to(vector.dtype))
        factor = v.dtype.type(scale)
        _run(
            lambda _k, start, stop: combine(r, w, factor, start, stop, STREAM_COLUMNS, v),
            _parts(len(v)),
        )
        return vector


def _array(tensor: Tensor) -> Any:
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy()
    return tensor.numpy()


def _parts(size: int) -> list[tuple[int, int]]:
    count = torch.get_num_threads()
    # Cut at whole cache lines, so that no two threads write to one.
    cuts = [size * k // count // 64 * 64 for k in range(count)] + [size]
    return list(pairwise(cuts))


def _run(task: Callable[[int, int, int], None], parts: list[tuple[int, int]]) -> None:
    def bound(k: int) -> Callable[[], None]:
        return lambda: task(k, *parts[k])

    workers().run([bound(k) for k in range(len(parts))])
