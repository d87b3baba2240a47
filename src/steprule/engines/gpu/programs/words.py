"""Words of the kernels' text that stand for more than one of Triton's: for the compiler.

``interpreted_words.py`` has the same for the interpreter. Roots and quotients are rounded as IEEE
754 says, which Triton's own are not in 32 bits; functions are those of the device's library, as
torch's.
"""

import triton.language as tl
from triton.language.extra import libdevice
from triton.runtime.jit import JITFunction


@JITFunction
def quotient(a, b):
    if a.dtype == tl.float32 and b.dtype == tl.float32:
        return tl.div_rn(a, b)
    return a / b


@JITFunction
def root(x):
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    return tl.sqrt(x)


@JITFunction
def power(a, b):
    return libdevice.pow(a, b)


@JITFunction
def exp(x):
    return libdevice.exp(x)


@JITFunction
def expm1(x):
    return libdevice.expm1(x)


@JITFunction
def log(x):
    return libdevice.log(x)


@JITFunction
def log1p(x):
    return libdevice.log1p(x)


@JITFunction
def tanh(x):
    return libdevice.tanh(x)


@JITFunction
def floor(x):
    return tl.floor(x)


@JITFunction
def shifted_right(x, by):
    return (x.to(tl.uint32, bitcast=True) >> by).to(tl.int32, bitcast=True)


@JITFunction
def bits(x):
    return x.to(tl.int32, bitcast=True)


@JITFunction
def long_bits(x):
    return x.to(tl.int64, bitcast=True)


@JITFunction
def double_of(x):
    return x.to(tl.float64, bitcast=True)


@JITFunction
def largest(x):
    return tl.reduce(x, None, tl.standard._elementwise_max)


@JITFunction
def total(x):
    return tl.reduce(x, None, tl.standard._sum_combine)


@JITFunction
def largest_along(x, axis: tl.constexpr):
    return tl.reduce(x, axis, tl.standard._elementwise_max, keep_dims=True)


@JITFunction
def total_along(x, axis: tl.constexpr):
    return tl.reduce(x, axis, tl.standard._sum_combine, keep_dims=True)
