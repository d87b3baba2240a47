"""Native loops over Python's and torch's own objects: what a thousand Python calls would take.

torch has a C function from a Python tensor to its memory's address (its compiler's generated code
uses it). Sizes and strides are read where torch keeps them; where that is, is found by looking for
a known tensor's, not assumed. What is not found as expected leaves the loops unused: the plain
calls do the same more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from typing import Any

import torch
from torch import Tensor

from steprule.engines.kernel_cache import CompilationError, NativeFunction, library_for
from steprule.engines.remembered import remembered

try:
    from torch._C._dynamo import guards as guards
except ImportError:  # pragma: no cover  # a torch without its compiler
    guards = None  # type: ignore[assignment]

# Where a tuple keeps its items: behind its header. A list has their address there.
_HEADER = tuple.__basicsize__
# How many words of a tensor's own memory are looked through: no tensor is smaller.
_TENSOR_WORDS = 18
# Tensors of more axes keep sizes and strides elsewhere, and the address of these in place of them.
_INLINE_AXES = 5

_SOURCE = f"""\
def addresses(data_ptr, items, found, count, _width):
    for i in range(count):
        store_int64(found, i, call_with_pointer(data_ptr, load_int64(items, i)))
    return 0

def differ(items, known, found, count, _width):
    for i in range(count):
        if load_int64(items, i) != load_int64(known, i):
            store_int64(found, 0, 1)
            return 0
    return 0

def moved(functions, entries, expected, count, width):
    data_ptr = load_int64(functions, 0)
    get_item = load_int64(functions, 1)
    at = 1
    store_int64(expected, 0, 1)
    for i in range(count):
        for k in range(width):
            tensor = load_int64(expected, at)
            if entries != 0:
                name = load_int64(functions, 2 + k)
                if call_with_pointers(get_item, load_int64(entries, i), name) != tensor:
                    return 0
            if call_with_pointer(data_ptr, tensor) != load_int64(expected, at + 1):
                return 0
            shape = load_int64(expected, at + 2)
            axes = load_int64(expected, at + 3)
            if load_int64(shape, 0) != axes:
                return 0
            sizes = shape + 8
            strides = shape + {8 * (1 + _INLINE_AXES)}
            if axes > {_INLINE_AXES}:
                sizes = load_int64(shape, 1)
                strides = sizes + 8 * axes
            for axis in range(axes):
                if load_int64(sizes, axis) != load_int64(expected, at + 4 + axis):
                    return 0
                if load_int64(strides, axis) != load_int64(expected, at + 4 + axes + axis):
                    return 0
            at += 4 + 2 * axes
    store_int64(expected, 0, 0)
    return 0
"""


@remembered
def native() -> list[NativeFunction]:
    """The loops: ``addresses``, ``differ``, ``moved``."""
    names = ("addresses", "differ", "moved")
    title = "the checks before a step"
    return library_for(_SOURCE, names, arity=5, keeps_gil=True, title=title).functions


@functools.cache
def data_ptr_function() -> int | None:
    """Address of torch's ``void* f(PyObject*)``; None unless all is as the loops expect."""
    address = getattr(guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not isinstance(address, int) or not has_lock or sys.implementation.name != "cpython":
        return None
    probe = Tensor([1.0, 2.0])[1:]
    function = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address)
    pair, both = (None, probe), [None, probe]
    works = (
        function(id(probe)) == probe.data_ptr()
        and _word(items_of(pair) + 8) == id(probe)
        and _word(items_of(both) + 8) == id(probe)
        and _shape_offset() is not None
    )
    return address if works and _can_compile() else None


def _can_compile() -> bool:
    try:
        return len(native()) > 0
    except CompilationError:
        return False


def shape_of(tensor: Tensor) -> int:
    """The address of the tensor's number of axes, behind which its sizes and strides are."""
    return int(tensor._cdata) + (_shape_offset() or 0)


@functools.cache
def _shape_offset() -> int | None:
    """Where in a tensor its number of axes stands; None if that is not found."""
    probe = torch.empty_strided((2, 3, 5), (31, 7, 1))
    many = torch.empty_strided((2, 3, 2, 1, 2, 4), (300, 90, 40, 30, 8, 1))
    for offset in range(0, 8 * (_TENSOR_WORDS - 10), 8):
        if _words(probe._cdata + offset, 4) != [3, 2, 3, 5]:
            continue
        strides = _words(probe._cdata + offset + 8 * (1 + _INLINE_AXES), 3)
        axes, elsewhere = _words(many._cdata + offset, 2)
        found = strides == [31, 7, 1] and axes == 6
        if found and _words(elsewhere, 12) == [*many.shape, *many.stride()]:
            return offset
    return None


def _word(address: int) -> int:
    return ctypes.c_int64.from_address(address).value


def _words(address: int, count: int) -> list[int]:
    return list((ctypes.c_int64 * count).from_address(address))


def items_of(objects: list[Any] | tuple[Any, ...]) -> int:
    """The address of the first item's."""
    where = id(objects) + _HEADER
    return _word(where) if type(objects) is list else where
