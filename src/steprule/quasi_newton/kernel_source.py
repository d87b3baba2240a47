"""The passes over a history in the kernels' language: each byte is read from memory once.

Torch's products cannot be fused: ``project`` would read S twice and ``peel`` Y twice. Here the
columns go in blocks; what a block needs again is still in the cache. A function works on the
blocks ``first`` to ``last``, over a control block of words (:class:`Word`); the sums of each block
are kept apart, so that results do not depend on which thread had it. Four rows go at once: more
streams from memory are in flight.
"""

from __future__ import annotations

import enum
import functools

from steprule.formats.floating import FloatingFormat


class Word(enum.IntEnum):
    """Words of the control block."""

    ROWS = 0  # address of the first row
    COUNT = enum.auto()  # how many rows
    STRIDE = enum.auto()  # elements from one row to the next
    SIZE = enum.auto()  # elements of a row
    COLUMNS = enum.auto()  # columns of one block
    ONE = enum.auto()  # address of the vector that is read
    OTHER = enum.auto()  # address of the second one, or of the one that is written
    WEIGHTS = enum.auto()  # address of the rows' weights, in the computing dtype
    SUMS = enum.auto()  # address of float64 sums: a row for each block
    SCALE = enum.auto()  # address of a float64


_HEAD = f"""\
    rows = load_int64(control, {Word.ROWS})
    count = load_int64(control, {Word.COUNT})
    stride = load_int64(control, {Word.STRIDE})
    size = load_int64(control, {Word.SIZE})
    columns = load_int64(control, {Word.COLUMNS})
    one = load_int64(control, {Word.ONE})
    other = load_int64(control, {Word.OTHER})
    weights = load_int64(control, {Word.WEIGHTS})
    sums = load_int64(control, {Word.SUMS})
    for block in range(first, last):
        left = block * columns
        width = min(columns, size - left)
"""

# rows @ one and rows @ other
_PROJECT = """\
        a = one + {bytes} * left
        b = other + {bytes} * left
        found = sums + 16 * count * block
        for i in range(0, count, 4):
            r0 = rows + {stored_bytes} * (stride * i + left)
            r1 = rows + {stored_bytes} * (stride * min(i + 1, count - 1) + left)
            r2 = rows + {stored_bytes} * (stride * min(i + 2, count - 1) + left)
            r3 = rows + {stored_bytes} * (stride * min(i + 3, count - 1) + left)
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = {number}(0.0)
            for j in range(width):
                x = load_{number}(a, j)
                y = load_{number}(b, j)
                v0 = {number}(load_{stored}(r0, j))
                v1 = {number}(load_{stored}(r1, j))
                v2 = {number}(load_{stored}(r2, j))
                v3 = {number}(load_{stored}(r3, j))
                a0 += v0 * x
                a1 += v1 * x
                a2 += v2 * x
                a3 += v3 * x
                b0 += v0 * y
                b1 += v1 * y
                b2 += v2 * y
                b3 += v3 * y
            # A row beyond the last is the last one again: stored over itself, from the back.
            store_float64(found, min(i + 3, count - 1), float64(a3))
            store_float64(found, min(i + 2, count - 1), float64(a2))
            store_float64(found, min(i + 1, count - 1), float64(a1))
            store_float64(found, i, float64(a0))
            store_float64(found, count + min(i + 3, count - 1), float64(b3))
            store_float64(found, count + min(i + 2, count - 1), float64(b2))
            store_float64(found, count + min(i + 1, count - 1), float64(b1))
            store_float64(found, count + i, float64(b0))
"""

# q -= weights @ rows on the block
_SUBTRACT = """\
        whole = count & -4
        for i in range(0, whole, 4):
            r0 = rows + {stored_bytes} * (stride * i + left)
            r1 = r0 + {stored_bytes} * stride
            r2 = r1 + {stored_bytes} * stride
            r3 = r2 + {stored_bytes} * stride
            w0 = load_{number}(weights, i)
            w1 = load_{number}(weights, i + 1)
            w2 = load_{number}(weights, i + 2)
            w3 = load_{number}(weights, i + 3)
            for j in range(width):
                v0 = w0 * {number}(load_{stored}(r0, j)) + w1 * {number}(load_{stored}(r1, j))
                v1 = w2 * {number}(load_{stored}(r2, j)) + w3 * {number}(load_{stored}(r3, j))
                store_{number}(q, j, load_{number}(q, j) - (v0 + v1))
        for i in range(whole, count):
            r0 = rows + {stored_bytes} * (stride * i + left)
            w0 = load_{number}(weights, i)
            for j in range(width):
                v0 = w0 * {number}(load_{stored}(r0, j))
                store_{number}(q, j, load_{number}(q, j) - v0)
"""

# q = one - weights @ rows, and rows @ q
_PEEL = f"""\
        g = one + {{bytes}} * left
        q = other + {{bytes}} * left
        for j in range(width):
            store_{{number}}(q, j, load_{{number}}(g, j))
{_SUBTRACT}\
        found = sums + 8 * count * block
        for i in range(0, count, 4):
            r0 = rows + {{stored_bytes}} * (stride * i + left)
            r1 = rows + {{stored_bytes}} * (stride * min(i + 1, count - 1) + left)
            r2 = rows + {{stored_bytes}} * (stride * min(i + 2, count - 1) + left)
            r3 = rows + {{stored_bytes}} * (stride * min(i + 3, count - 1) + left)
            a0 = a1 = a2 = a3 = {{number}}(0.0)
            for j in range(width):
                x = load_{{number}}(q, j)
                a0 += {{number}}(load_{{stored}}(r0, j)) * x
                a1 += {{number}}(load_{{stored}}(r1, j)) * x
                a2 += {{number}}(load_{{stored}}(r2, j)) * x
                a3 += {{number}}(load_{{stored}}(r3, j)) * x
            store_float64(found, min(i + 3, count - 1), float64(a3))
            store_float64(found, min(i + 2, count - 1), float64(a2))
            store_float64(found, min(i + 1, count - 1), float64(a1))
            store_float64(found, i, float64(a0))
"""

# q = -(scale * q + weights @ rows)
_COMBINE = f"""\
        q = other + {{bytes}} * left
        scale = {{number}}(load_float64(load_int64(control, {Word.SCALE}), 0))
        for j in range(width):
            store_{{number}}(q, j, -scale * load_{{number}}(q, j))
{_SUBTRACT}"""

PASSES = {"project": _PROJECT, "peel": _PEEL, "combine": _COMBINE}


@functools.cache
def source_of(stored: FloatingFormat, number: FloatingFormat) -> str:
    """Return the passes over rows that are ``stored`` so, for vectors of plain numbers."""
    words = {
        "stored": stored.name,
        "number": number.name,
        "stored_bytes": stored.bytes_for(1),
        "bytes": number.bytes_for(1),
    }
    functions = [
        f"def {name}(control, first, last):\n{_HEAD}{body.format(**words)}    return 0\n"
        for name, body in PASSES.items()
    ]
    return "\n".join(functions)
