"""Kernels run as what they look like: Python, with memory by address.

The second meaning of the kernels' language, by which the compiler is judged. Slow, and safe only
for addresses that are right.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

_NUMBERS = {
    "int64": np.int64,
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "uint8": np.uint8,
    "int16": np.int16,
}


def _accessors(kind: Any) -> tuple[Callable[..., Any], Callable[..., None]]:
    size = np.dtype(kind).itemsize
    numbers = {np.int64: int, np.float16: np.float32, np.uint8: np.int32, np.int16: np.int32}
    number = numbers.get(kind, kind)

    def load(address: int, index: int) -> Any:
        return number(np.frombuffer(ctypes.string_at(address + size * index, size), kind)[0])

    def store(address: int, index: int, value: Any) -> None:
        stored = np.asarray(value).astype(kind)  # of integers the lowest bits
        ctypes.memmove(address + size * index, stored.tobytes(), size)

    return load, store


def _load_bfloat16(address: int, index: int) -> Any:
    bits = int.from_bytes(ctypes.string_at(address + 2 * index, 2), "little")
    return np.uint32(bits << 16).view(np.float32)


def _store_bfloat16(address: int, index: int, value: Any) -> None:
    rounded = torch.tensor([float(value)]).to(torch.bfloat16).view(torch.uint8)
    ctypes.memmove(address + 2 * index, bytes(rounded.tolist()), 2)


def _int32(value: Any) -> Any:
    """Return the lowest 32 bits of an integer, or a number without its fraction."""
    wrapped = int(value) & 0xFFFFFFFF
    return np.int32(wrapped - (wrapped >> 31 << 32))


# What `scratch` gave is kept as long as its address may be used.
_SCRATCH: dict[int, Any] = {}


def _scratch(size: int) -> int:
    room = _SCRATCH.setdefault(len(_SCRATCH), ctypes.create_string_buffer(size))
    return ctypes.addressof(room)


def namespace() -> dict[str, Any]:
    """What a kernel may call, in Python."""
    words: dict[str, Any] = {
        "float32": np.float32,
        "float64": np.float64,
        "sqrt": np.sqrt,
        "exp": lambda x: type(x)(math.exp(x)),
        "log": lambda x: type(x)(math.log(x)),
        "expm1": lambda x: type(x)(math.expm1(x)),
        "log1p": lambda x: type(x)(math.log1p(x)),
        "tanh": lambda x: type(x)(math.tanh(x)),
        "floor": np.floor,
        "inf": math.inf,
        "neg_inf": -math.inf,
        "nan": math.nan,
        "prefetch": lambda address: None,
        "flush_denormals": lambda: 0,
        "restore_denormals": lambda mode: None,
        "load_bfloat16": _load_bfloat16,
        "store_bfloat16": _store_bfloat16,
    }
    for name, kind in _NUMBERS.items():
        words[f"load_{name}"], words[f"store_{name}"] = _accessors(kind)
    words["rounded_float16"] = lambda x: np.float32(np.float16(x))
    words["rounded_bfloat16"] = lambda x: np.float32(torch.tensor(float(x)).bfloat16().item())
    words["int64"] = int
    words["int32"] = _int32
    words["bits_of"] = lambda x: np.float32(x).view(np.int32)
    words["float_of"] = lambda x: np.int32(x).view(np.float32)
    words["lshr"] = lambda x, by: (x.view(np.uint32) >> np.uint32(by)).view(np.int32)
    words["largest"], words["smallest"] = max, min
    words["independent"] = range
    words["scratch"] = _scratch
    return words


def functions_of(source: str, names: tuple[str, ...]) -> list[Callable[..., int]]:
    """The functions of a kernel's source, run by Python."""
    words = namespace()
    exec(compile(source, "<kernel>", "exec"), words)
    return [words[name] for name in names]
