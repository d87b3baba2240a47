"""What a kernel may call: conversions, mathematics, memory by address, the denormal mode."""

from __future__ import annotations

import functools
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import contains
from typing import Any

from llvmlite import ir

I1, I32, I64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
F32, F64 = ir.FloatType(), ir.DoubleType()
_I8, _I16, _F16 = ir.IntType(8), ir.IntType(16), ir.HalfType()
_BYTES = ir.IntType(8).as_pointer()
_INT = (I64,)
_WORD = (I32,)

CONSTANTS = {"inf": math.inf, "neg_inf": -math.inf, "nan": math.nan}

Emit = Callable[..., Any]
#: Words of which both sides of a choice may be made.
WITHOUT_MEMORY = (
    *("float32", "float64", "int32", "bits_of", "float_of", "lshr", "largest", "smallest"),
)


@dataclass(frozen=True)
class Word:
    """A word of the language.

    Attributes:
        emit: called with a builder and the arguments; gives the result, or None.
        kinds: for each argument, the kinds that it may be of.
    """

    emit: Emit
    kinds: tuple[tuple[Any, ...], ...]

    def takes(self, kinds: Sequence[Any]) -> bool:
        """Tell whether arguments may be of these kinds."""
        return len(kinds) == len(self.kinds) and all(map(contains, self.kinds, kinds))


def _cast(kind: Any) -> Emit:
    def emit(b: ir.IRBuilder, value: Any) -> Any:
        if value.type == kind:
            return value
        ways = {
            (I1, F32): b.uitofp,
            (I1, F64): b.uitofp,
            (I64, F32): b.sitofp,
            (I64, F64): b.sitofp,
            (F32, F64): b.fpext,
            (F64, F32): b.fptrunc,
            (F32, I64): b.fptosi,
            (F64, I64): b.fptosi,
            (I32, F32): b.sitofp,
            (F32, I32): b.fptosi,
            (I32, I64): b.sext,
            (I64, I32): b.trunc,
        }
        return ways[value.type, kind](value, kind)

    return emit


def intrinsic_call(name: str) -> Emit:
    """Return a call of one of LLVM's own functions of floats of one kind."""

    def emit(b: ir.IRBuilder, *values: Any) -> Any:
        kind = values[0].type
        function = b.module.declare_intrinsic(
            f"llvm.{name}", (kind,), ir.FunctionType(kind, [kind] * len(values))
        )
        return b.call(function, values)

    return emit


def _library_call(name: str) -> Emit:
    """Return a call of a function of C's library, for which LLVM has none of its own."""

    def emit(b: ir.IRBuilder, value: Any) -> Any:
        symbol = name + ("f" if value.type == F32 else "")
        function = b.module.globals.get(symbol) or ir.Function(
            b.module, ir.FunctionType(value.type, [value.type]), symbol
        )
        function.attributes.add("nounwind")
        return b.call(function, [value])

    return emit


def _chosen(comparison: str) -> Emit:
    def emit(b: ir.IRBuilder, one: Any, other: Any) -> Any:
        return b.select(b.icmp_signed(comparison, one, other), one, other)

    return emit


def _bits_of(b: ir.IRBuilder, value: Any) -> Any:
    return b.bitcast(value, I32)


def _float_of(b: ir.IRBuilder, bits: Any) -> Any:
    return b.bitcast(bits, F32)


def _scratch(b: ir.IRBuilder, bytes_: Any) -> Any:
    """Reserve memory of the function's own, the same at each call."""
    with b.goto_entry_block():
        cell = b.alloca(_I8, bytes_)
        cell.align = 64
        return b.ptrtoint(cell, I64)


def _lshr(b: ir.IRBuilder, value: Any, by: Any) -> Any:
    return b.lshr(value, by)


def _from_byte(b: ir.IRBuilder, value: Any) -> Any:
    return b.zext(value, I32)


def _to_byte(b: ir.IRBuilder, value: Any) -> Any:
    return b.trunc(value, _I8)


def _from_short(b: ir.IRBuilder, value: Any) -> Any:
    return b.sext(value, I32)


def _to_short(b: ir.IRBuilder, value: Any) -> Any:
    return b.trunc(value, _I16)


def _as_is(_: ir.IRBuilder, value: Any) -> Any:
    return value


def _half_to_float(b: ir.IRBuilder, value: Any) -> Any:
    return b.fpext(value, F32)


def _float_to_half(b: ir.IRBuilder, value: Any) -> Any:
    return b.fptrunc(value, _F16)


def _bfloat_to_float(b: ir.IRBuilder, bits: Any) -> Any:
    return b.bitcast(b.shl(b.zext(bits, I32), I32(16)), F32)


def _float_to_bfloat(b: ir.IRBuilder, value: Any) -> Any:
    """Round to nearest, ties to even; a nan stays one (rounding could carry it to infinity)."""
    bits = b.bitcast(value, I32)
    is_odd = b.and_(b.lshr(bits, I32(16)), I32(1))
    rounded = b.add(b.add(bits, I32(0x7FFF)), is_odd)
    quiet = b.or_(bits, I32(0x400000))
    is_nan = b.fcmp_unordered("uno", value, value)
    return b.trunc(b.lshr(b.select(is_nan, quiet, rounded), I32(16)), _I16)


# How each dtype is stored, the number that it is read as, and the ways there and back.
_STORED: Mapping[str, tuple[Any, Any, Emit, Emit]] = {
    "int64": (I64, I64, _as_is, _as_is),
    "float64": (F64, F64, _as_is, _as_is),
    "float32": (F32, F32, _as_is, _as_is),
    "float16": (_F16, F32, _half_to_float, _float_to_half),
    "bfloat16": (_I16, F32, _bfloat_to_float, _float_to_bfloat),
    "uint8": (_I8, I32, _from_byte, _to_byte),
    "int16": (_I16, I32, _from_short, _to_short),
}


def _accessors(stored: Any, number: Any, decode: Emit, encode: Emit) -> tuple[Word, Word]:
    def place(b: ir.IRBuilder, address: Any, index: Any) -> Any:
        return b.gep(b.inttoptr(address, stored.as_pointer()), [index], source_etype=stored)

    def load(b: ir.IRBuilder, address: Any, index: Any) -> Any:
        # Tensors may start at any byte (torch.frombuffer); vector loads cost the same.
        return decode(b, b.load(place(b, address, index), align=1, typ=stored))

    def store(b: ir.IRBuilder, address: Any, index: Any, value: Any) -> None:
        b.store(encode(b, value), place(b, address, index), align=1)

    return Word(load, (_INT, _INT)), Word(store, (_INT, _INT, (number,)))


def _rounded(decode: Emit, encode: Emit) -> Emit:
    """Return what gives a number as it would be stored and read again."""
    return lambda b, value: decode(b, encode(b, value))


def _prefetch(b: ir.IRBuilder, address: Any) -> None:
    """Ask for the cache line at an address ahead of its use; harmless for any address."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES, I32, I32, I32])
    function = b.module.declare_intrinsic("llvm.prefetch", (_BYTES,), kind)
    # For writing, to be kept in every level, data and not code.
    b.call(function, [b.inttoptr(address, _BYTES), I32(1), I32(3), I32(1)])


def _call_native(b: ir.IRBuilder, function: Any, *args: Any) -> Any:
    """Call a C function of integers or addresses; more than it takes do no harm.

    What a function of 32 bits leaves above them is undefined.
    """
    kind = ir.FunctionType(I64, [I64] * len(args))
    return b.call(b.inttoptr(function, kind.as_pointer()), args)


# Bits of MXCSR by which denormals count as zero, read and written.
_FLUSH = 0x8040


def _has_mxcsr() -> bool:
    return platform.machine().lower() in ("x86_64", "amd64")


def _mode_call(b: ir.IRBuilder, name: str, cell: Any) -> None:
    """MXCSR is only reached through memory."""
    kind = ir.FunctionType(ir.VoidType(), [_BYTES])
    function = b.module.declare_intrinsic(f"llvm.x86.sse.{name}", (), kind)
    b.call(function, [b.bitcast(cell, _BYTES)])


def _flush_denormals(b: ir.IRBuilder) -> Any:
    """Treat denormals as zero on this thread; give the mode that was in force."""
    if not _has_mxcsr():
        return I64(0)
    cell = b.alloca(I32)
    _mode_call(b, "stmxcsr", cell)
    mode = b.load(cell, typ=I32)
    b.store(b.or_(mode, I32(_FLUSH)), cell)
    _mode_call(b, "ldmxcsr", cell)
    return b.zext(mode, I64)


def _restore_denormals(b: ir.IRBuilder, mode: Any) -> None:
    """Put back what flush_denormals gave."""
    if _has_mxcsr():
        cell = b.alloca(I32)
        b.store(b.trunc(mode, I32), cell)
        _mode_call(b, "ldmxcsr", cell)


@functools.cache
def vocabulary() -> Mapping[str, Word]:
    """Return every word by its name."""
    words = {
        "int64": Word(_cast(I64), ((I32, I64, F32, F64),)),
        "int32": Word(_cast(I32), ((I32, I64, F32),)),
        "float32": Word(_cast(F32), ((I1, I32, I64, F32, F64),)),
        "float64": Word(_cast(F64), ((I1, I64, F32, F64),)),
        "sqrt": Word(intrinsic_call("sqrt"), ((F32, F64),)),
        "exp": Word(intrinsic_call("exp"), ((F32, F64),)),
        "log": Word(intrinsic_call("log"), ((F32, F64),)),
        "floor": Word(intrinsic_call("floor"), ((F32, F64),)),
        **{name: Word(_library_call(name), ((F32, F64),)) for name in ("expm1", "log1p", "tanh")},
        "abs": Word(intrinsic_call("fabs"), ((F32, F64),)),
        "min": Word(_chosen("<"), (_INT, _INT)),
        "largest": Word(_chosen(">"), (_WORD, _WORD)),
        "smallest": Word(_chosen("<"), (_WORD, _WORD)),
        "bits_of": Word(_bits_of, ((F32,),)),
        "float_of": Word(_float_of, (_WORD,)),
        "lshr": Word(_lshr, (_WORD, _WORD)),
        "scratch": Word(_scratch, (_INT,)),
        "prefetch": Word(_prefetch, (_INT,)),
        "call_native": Word(_call_native, (_INT,) * 6),
        "flush_denormals": Word(_flush_denormals, ()),
        "restore_denormals": Word(_restore_denormals, (_INT,)),
    }
    for name in ("bfloat16", "float16"):
        words[f"rounded_{name}"] = Word(_rounded(*_STORED[name][2:]), ((F32,),))
    for name, stored in _STORED.items():
        words[f"load_{name}"], words[f"store_{name}"] = _accessors(*stored)
    return words
