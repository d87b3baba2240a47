"""torch's C functions for extensions and compiled models, by their names."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from pathlib import Path
from typing import Any

import torch


@functools.cache
def torch_library() -> Any:
    """Return the library that has them, as ctypes has it; None where it is not to be had."""
    folder = Path(torch.__file__).parent / "lib"
    for name in ("libtorch_cpu.so", "libtorch_cpu.dylib", "torch_cpu.dll"):
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(folder / name))
    return None


def address_of_function(*names: str) -> int:
    """Return the address of the first of these functions that this torch has; 0 if it has none."""
    found = (getattr(torch_library(), name, None) for name in names)
    function = next((f for f in found if f is not None), None)
    return 0 if function is None else ctypes.cast(function, ctypes.c_void_p).value or 0
