"""The words of ``words.py`` for Triton's interpreter, whose tiles are NumPy arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import TensorHandle


def _of_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    def word(*tiles: Any) -> Any:
        like = next(tile for tile in tiles if isinstance(tile, tl.tensor))
        arrays = [t.handle.data if isinstance(t, tl.tensor) else t for t in tiles]
        with np.errstate(all="ignore"):
            made = np.asarray(function(*arrays)).astype(like.handle.data.dtype)
        kind = tl.block_type(like.dtype, list(made.shape)) if like.shape else like.dtype
        return tl.tensor(TensorHandle(made, like.dtype), kind)

    return word


quotient = _of_arrays(np.true_divide)
root = _of_arrays(np.sqrt)
power = _of_arrays(np.power)
exp = _of_arrays(np.exp)
expm1 = _of_arrays(np.expm1)
log = _of_arrays(np.log)
log1p = _of_arrays(np.log1p)
tanh = _of_arrays(np.tanh)
floor = _of_arrays(np.floor)


def shifted_right(x: Any, by: Any) -> Any:
    return (x.to(tl.uint32, bitcast=True) >> by).to(tl.int32, bitcast=True)


def bits(x: Any) -> Any:
    return x.to(tl.int32, bitcast=True)


def long_bits(x: Any) -> Any:
    return x.to(tl.int64, bitcast=True)


def double_of(x: Any) -> Any:
    return x.to(tl.float64, bitcast=True)


def largest(x: Any) -> Any:
    return tl.reduce(x, None, tl.standard._elementwise_max)


def total(x: Any) -> Any:
    return tl.reduce(x, None, tl.standard._sum_combine)


def largest_along(x: Any, axis: int) -> Any:
    return tl.reduce(x, axis, tl.standard._elementwise_max, keep_dims=True)


def total_along(x: Any, axis: int) -> Any:
    return tl.reduce(x, axis, tl.standard._sum_combine, keep_dims=True)
