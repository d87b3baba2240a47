"""What a kernel's source may call, for Numba: memory by address, and the denormal mode.

Imported only when a kernel has to be compiled (it imports Numba).
"""

from __future__ import annotations

import math
import platform
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_F16, _F32, _F64 = ir.HalfType(), ir.FloatType(), ir.DoubleType()


def _as_is(_: ir.IRBuilder, value: Any) -> Any:
    return value


def _half_to_float(b: ir.IRBuilder, value: Any) -> Any:
    return b.fpext(value, _F32)


def _float_to_half(b: ir.IRBuilder, value: Any) -> Any:
    return b.fptrunc(value, _F16)


def _bfloat_to_float(b: ir.IRBuilder, bits: Any) -> Any:
    return b.bitcast(b.shl(b.zext(bits, _I32), _I32(16)), _F32)


def _float_to_bfloat(b: ir.IRBuilder, value: Any) -> Any:
    """Round to nearest, ties to even; a nan stays one (rounding could carry it to infinity)."""
    bits = b.bitcast(value, _I32)
    is_odd = b.and_(b.lshr(bits, _I32(16)), _I32(1))
    rounded = b.add(b.add(bits, _I32(0x7FFF)), is_odd)
    quiet = b.or_(bits, _I32(0x400000))
    is_nan = b.fcmp_unordered("uno", value, value)
    return b.trunc(b.lshr(b.select(is_nan, quiet, rounded), _I32(16)), _I16)


def _accessors(stored: Any, number: Any, decode: Any, encode: Any) -> tuple[Any, Any]:
    @intrinsic
    def load(_typing: Any, address: Any, index: Any) -> tuple[Any, Any]:
        def generate(_context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
            base = b.inttoptr(args[0], stored.as_pointer())
            element = b.gep(base, [args[1]], source_etype=stored)
            # Tensors may start at any byte (torch.frombuffer); vector loads cost the same.
            return decode(b, b.load(element, align=1, typ=stored))

        return number(types.int64, types.int64), generate

    @intrinsic
    def store(_typing: Any, address: Any, index: Any, value: Any) -> tuple[Any, Any]:
        def generate(context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
            base = b.inttoptr(args[0], stored.as_pointer())
            b.store(encode(b, args[2]), b.gep(base, [args[1]], source_etype=stored), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, number), generate

    return load, store


def _mode_accessors() -> tuple[Any, Any, int]:
    """How to read and write this processor's floating-point mode, and the bits that flush."""
    machine = platform.machine().lower()
    if machine in ("x86_64", "amd64"):
        return _x86_mode("stmxcsr"), _x86_mode("ldmxcsr"), 0x8040
    return None, None, 0


def _x86_mode(name: str) -> Callable[..., Any]:
    """MXCSR is only reached through memory."""

    def generate(b: ir.IRBuilder, value: Any) -> Any:
        cell = b.alloca(_I32)
        if value is not None:
            b.store(value, cell)
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer])
        function = b.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), kind)
        b.call(function, [b.bitcast(cell, pointer)])
        return b.load(cell, typ=_I32)

    return generate


def _denormal_intrinsics() -> tuple[Any, Any]:
    read, write, flush_bits = _mode_accessors()

    @intrinsic
    def flush_denormals(_typing: Any) -> tuple[Any, Any]:
        """Treat denormals as zero on this thread; return the mode that was in force."""

        def generate(_context: Any, b: ir.IRBuilder, _signature: Any, _args: Any) -> Any:
            if read is None:
                return _I32(0)
            mode = read(b, None)
            write(b, b.or_(mode, _I32(flush_bits)))
            return mode

        return types.int32(), generate

    @intrinsic
    def restore_denormals(_typing: Any, mode: Any) -> tuple[Any, Any]:
        """Put back what flush_denormals returned."""

        def generate(context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
            if write is not None:
                write(b, args[0])
            return context.get_dummy_value()

        return types.void(types.int32), generate

    return flush_denormals, restore_denormals


@intrinsic
def call_native(_typing: Any, function: Any, a: Any, b: Any, c: Any, d: Any, e: Any) -> Any:
    """Call a C function of up to five integers or addresses; more than it takes do no harm.

    What a function of 32 bits leaves above them is undefined.
    """

    def generate(_context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_I64, [_I64] * (len(args) - 1))
        return b.call(b.inttoptr(args[0], kind.as_pointer()), args[1:])

    return types.int64(*[types.int64] * 6), generate


@intrinsic
def prefetch(_typing: Any, address: Any) -> tuple[Any, Any]:
    """Ask for the cache line at an address ahead of its use; harmless for any address."""

    def generate(context: Any, b: ir.IRBuilder, _signature: Any, args: Any) -> Any:
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, _I32, _I32, _I32])
        function = b.module.declare_intrinsic("llvm.prefetch", (pointer,), kind)
        # For writing, to be kept in every level, data and not code.
        b.call(function, [b.inttoptr(args[0], pointer), _I32(1), _I32(3), _I32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def kernel_namespace() -> dict[str, Any]:
    """The globals of a kernel."""
    names: dict[str, Any] = {
        "float32": np.float32,
        "float64": np.float64,
        "sqrt": np.sqrt,
        "exp": np.exp,
        "log": np.log,
        "inf": math.inf,
        "neg_inf": -math.inf,
        "nan": math.nan,
    }
    kinds: dict[str, tuple[Any, Any, Any, Any]] = {
        "int64": (_I64, types.int64, _as_is, _as_is),
        "float64": (_F64, types.float64, _as_is, _as_is),
        "float32": (_F32, types.float32, _as_is, _as_is),
        "float16": (_F16, types.float32, _half_to_float, _float_to_half),
        "bfloat16": (_I16, types.float32, _bfloat_to_float, _float_to_bfloat),
    }
    for name, kind in kinds.items():
        names[f"load_{name}"], names[f"store_{name}"] = _accessors(*kind)
    names["prefetch"] = prefetch
    names["call_native"] = call_native
    names["flush_denormals"], names["restore_denormals"] = _denormal_intrinsics()
    return names
