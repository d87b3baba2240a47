"""Addresses of many tensors' memory at once, and quick checks that all is where it was.

``tensor.data_ptr()`` costs Python 50 ns, which for a thousand small tensors is as much as the
update. torch has both things in C++ for its own compiler: a function that turns a Python tensor
into its address, and guards that compare type, dtype, device, sizes and strides. Where this torch
lacks them, the plain calls do the same more slowly.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch
from torch import Tensor

from steprule.engines.kernel_cache import NativeFunction, library_for

try:
    from torch._C._dynamo import guards as _guards
except ImportError:  # pragma: no cover  # a torch without its compiler
    _guards = None  # type: ignore[assignment]

# Where a tuple keeps its items: behind its header. A list has their address there.
_HEADER = tuple.__basicsize__


@functools.cache
def _data_ptr_function() -> int | None:
    """Address of torch's ``void* f(PyObject*)``, if it is there and gives the right answer."""
    address = getattr(_guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not isinstance(address, int) or not has_lock or sys.implementation.name != "cpython":
        return None
    probe = Tensor([1.0, 2.0])[1:]
    function = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address)
    pair, both = (None, probe), [None, probe]
    works = (
        function(id(probe)) == probe.data_ptr()
        and _word(_items_of(pair) + 8) == id(probe)
        and _word(_items_of(both) + 8) == id(probe)
    )
    return address if works else None


def _word(address: int) -> int:
    return ctypes.c_void_p.from_address(address).value or 0


def _items_of(objects: list[Any] | tuple[Any, ...]) -> int:
    """The address of the first item's."""
    where = id(objects) + _HEADER
    return _word(where) if type(objects) is list else where


_SOURCE = """\
def addresses(function, items, found, count, _width):
    for i in range(count):
        store_int64(found, i, call_with_pointer(function, load_int64(items, i)))
    return 0

def changed_items(items, known, found, count, _width):
    for i in range(count):
        if load_int64(items, i) != load_int64(known, i):
            store_int64(found, 0, 1)
            return 0
    return 0

def changed_entries(functions, entries, expected, count, width):
    data_ptr = load_int64(functions, 0)
    get_item = load_int64(functions, 1)
    for i in range(count):
        entry = load_int64(entries, i)
        for k in range(width):
            tensor = call_with_pointers(get_item, entry, load_int64(functions, 2 + k))
            known = 2 * (i * width + k)
            if tensor != load_int64(expected, known):
                store_int64(expected, 2 * count * width, 1)
                return 0
            if call_with_pointer(data_ptr, tensor) != load_int64(expected, known + 1):
                store_int64(expected, 2 * count * width, 1)
                return 0
    return 0
"""


@functools.cache
def _native() -> list[NativeFunction]:
    names = ("addresses", "changed_items", "changed_entries")
    return library_for(_SOURCE, names, arity=5, keeps_gil=True).functions


def addresses_of(tensors: tuple[Tensor, ...]) -> array[int]:
    """The address of each tensor's first element, 0 for one without memory.

    Args:
        tensors: plain dense tensors (checked before: what has no storage at all would not raise
            here but end the process).
    """
    function = _data_ptr_function()
    if function is None:
        return array("q", map(Tensor.data_ptr, tensors))
    found = array("q", bytes(8 * len(tensors)))
    _native()[0](function, _items_of(tensors), found.buffer_info()[0], len(tensors), 1)
    return found


def are_same(objects: Sequence[Any], known: tuple[Any, ...]) -> bool:
    """Whether two sequences of equal length hold the very same objects."""
    if _data_ptr_function() is None or type(objects) not in (list, tuple):
        return all(map(is_, objects, known))
    found = array("q", [0])
    _native()[1](
        _items_of(objects),  # type: ignore[arg-type]  # lists and tuples alone come here
        _items_of(known),
        found.buffer_info()[0],
        len(known),
        1,
    )
    return not found[0]


class SameTensors:
    """Whether dicts still hold the same tensors under some names, in the same memory.

    Args:
        entries: the dicts; every one has every name.
        names: the names; at least one.
    """

    def __init__(self, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        self._entries, self._names = tuple(entries), tuple(names)
        self._tensors = self._now()
        words = zip(map(id, self._tensors), addresses_of(self._tensors), strict=True)
        # Behind what is expected, the word in which the native loop says that it found otherwise.
        self._expected = array("q", [*chain.from_iterable(words), 0])
        data_ptr = _data_ptr_function()
        self._functions: array[int] | None = None
        if data_ptr is not None and all(type(entry) is dict for entry in entries):
            get_item = ctypes.cast(ctypes.pythonapi.PyDict_GetItemWithError, ctypes.c_void_p).value
            self._functions = array("q", [data_ptr, get_item or 0, *map(id, self._names)])

    def _now(self) -> tuple[Tensor, ...]:
        return tuple(entry[name] for entry in self._entries for name in self._names)

    def hold(self) -> bool:
        """Whether nothing was replaced, removed or moved."""
        if self._functions is not None:
            self._expected[-1] = 0
            _native()[2](
                self._functions.buffer_info()[0],
                _items_of(self._entries),
                self._expected.buffer_info()[0],
                len(self._entries),
                len(self._names),
            )
            return self._expected[-1] == 0
        try:
            tensors = self._now()
        except KeyError:
            return False
        return all(map(is_, tensors, self._tensors)) and (
            array("q", map(Tensor.data_ptr, tensors)) == self._expected[1:-1:2]
        )


class Likeness:
    """Whether tensors are of the same types, dtypes, sizes and strides as those it was made of."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._known: list[Any] = []
        make = getattr(_guards, "TensorGuards", None)
        self._guard: Any = make and make(
            *tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None
        )
        if not make:
            self._known = [_looks(t) for t in tensors]

    def holds(self, tensors: Sequence[Any]) -> bool:
        """Whether each of ``tensors`` is like its counterpart; None is like nothing."""
        if self._guard is not None:
            return bool(self._guard.check(*tensors))
        return all(
            t is not None and not t.is_conj() and not t.is_neg() and _looks(t) == known
            for t, known in zip(tensors, self._known, strict=True)
        )


def _looks(tensor: Tensor) -> tuple[Any, ...]:
    is_strided = tensor.layout is torch.strided
    stride = tensor.stride() if is_strided else None
    return type(tensor), tensor.dtype, tensor.device, tensor.layout, tensor.shape, stride
