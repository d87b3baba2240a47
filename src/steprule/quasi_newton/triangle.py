"""Solving with the triangle R of a history, whose rows and columns are slots of its ring.

One compiled function for each side: what NumPy and torch take to reorder and solve 100 unknowns is
as long as a pass over a history of 10,000 values.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from steprule.engines.kernel_cache.cached_lookup import cached_lookup

Matrix = NDArray[np.float64]
Slots = NDArray[np.intp]

# matrix, its row length, order, count and solution (which holds the right side at first)
_SOURCE = """\
def solve(matrix, stride, order, count, x):
    for k in range(count - 1, -1, -1):
        i = load_int64(order, k)
        total = load_float64(x, i)
        for l in range(k + 1, count):
            j = load_int64(order, l)
            total -= load_float64(matrix, i * stride + j) * load_float64(x, j)
        store_float64(x, i, total / load_float64(matrix, i * stride + i))
    return 0

def solve_transposed(matrix, stride, order, count, x):
    for k in range(count):
        i = load_int64(order, k)
        found = load_float64(x, i) / load_float64(matrix, i * stride + i)
        store_float64(x, i, found)
        for l in range(k + 1, count):
            j = load_int64(order, l)
            entry = load_float64(matrix, i * stride + j)
            store_float64(x, j, load_float64(x, j) - entry * found)
    return 0
"""


@cached_lookup
def native() -> Any:
    """Return the two functions of the source above."""
    from steprule.engines.kernel_cache.cache import library_for  # loads the compiler's back end

    names = ("solve", "solve_transposed")
    return library_for(_SOURCE, names, arity=5, title="LBFGS's triangle").functions


def solved(
    matrix: Matrix, order: Slots, right: NDArray[Any], *, is_transposed: bool = False
) -> Matrix:
    """Return the x with ``R x = right``, or with R transposed.

    Args:
        matrix: R where the row and the column of a pair are its slot; only entries whose column
            comes later in ``order`` than their row are read, and the diagonal.
        order: the slots, oldest pair first.
        right: the right side, by slot.
    """
    found = np.array(right, dtype=np.float64)
    slots = np.ascontiguousarray(order, dtype=np.int64)
    native()[is_transposed](
        matrix.ctypes.data, matrix.shape[1], slots.ctypes.data, len(slots), found.ctypes.data
    )
    return found
