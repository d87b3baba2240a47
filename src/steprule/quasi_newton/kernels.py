"""The passes over a history by compiled kernels, on torch's own threads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernel_cache.cached_lookup import cached_lookup
from steprule.engines.threads.work_split import WorkSplit
from steprule.formats.floating import FLOATING
from steprule.quasi_newton.kernel_source import PASSES, Word, source_of

# Columns of a block of `project` and `combine`: only the vectors must stay in the cache.
COLUMNS = 16_384
# `peel` keeps the block of rows itself, read twice: beyond one core's second-level cache, since
# shorter pieces of rows take longer from memory than the second reading from the third level.
PEEL_BYTES = 2 << 20
# A short vector is cut into so many blocks at the least.
BLOCKS = 8
# Bytes of rows for each thread: with fewer, another thread costs more than it saves.
GRAIN = 1 << 20

STORED = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
NUMBERS = (torch.float32, torch.float64)

Matrix = np.ndarray[Any, Any]


class KernelPasses:
    """The passes by kernels, on as many threads as torch would use."""

    def project(self, rows: Tensor, one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
        sums = _run(rows, "project", one, other, sums=2)
        first, second = torch.from_numpy(sums.sum(0)).view(2, -1)
        return first, second

    def peel(self, rows: Tensor, weights: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        rest = torch.empty_like(grad)
        sums = _run(rows, "peel", grad, rest, weights=weights, sums=1)
        return rest, torch.from_numpy(sums.sum(0))

    def combine(self, rows: Tensor, weights: Tensor, scale: float, vector: Tensor) -> Tensor:
        _run(rows, "combine", vector, vector, weights=weights, scale=scale)
        return vector


def _run(
    rows: Tensor,
    name: str,
    one: Tensor,
    other: Tensor,
    *,
    weights: Tensor | None = None,
    scale: float = 0.0,
    sums: int = 0,
) -> Matrix:
    """Run one pass; return its sums, ``sums`` numbers a row of ``rows`` for each block."""
    count, size = rows.shape
    most = COLUMNS if name != "peel" else PEEL_BYTES // (rows.element_size() * max(count, 1))
    # Some blocks for every thread, but never by their number: sums must not depend on it.
    columns = max(256, min(most, size // BLOCKS) // 64 * 64)
    blocks = -(-size // columns)
    found = np.empty((blocks, sums * count))
    factors = np.array([scale])
    weights = one if weights is None else weights.to(one.dtype)
    control = np.zeros(len(Word), dtype=np.int64)
    control[:] = (
        rows.data_ptr(),
        count,
        rows.stride(0),
        size,
        columns,
        one.data_ptr(),
        other.data_ptr(),
        weights.data_ptr(),
        found.ctypes.data,
        factors.ctypes.data,
    )
    library = library_of(rows.dtype, one.dtype)
    index = tuple(PASSES).index(name)
    bytes_of_rows = count * size * rows.element_size()
    threads = min(torch.get_num_threads(), blocks, 1 + bytes_of_rows // GRAIN)
    if threads <= 1:
        library.functions[index](control.ctypes.data, 0, blocks)
    else:
        edges = [blocks * k // threads for k in range(threads + 1)]
        WorkSplit(library, index, control.ctypes.data, edges).run()
    return found


@cached_lookup
def library_of(stored: torch.dtype, number: torch.dtype) -> Library:
    """Return the passes over rows of one dtype and vectors of another."""
    source = source_of(FLOATING[stored], FLOATING[number])
    title = "LBFGS's passes over its history"
    return library_for(source, tuple(PASSES), arity=3, reorders_sums=True, title=title)
