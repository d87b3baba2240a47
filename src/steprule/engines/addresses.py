"""Addresses of many tensors' memory at once, and one check that they are what they were.

``tensor.data_ptr()`` costs Python 50 ns, which for a thousand small tensors is as much as the
update. torch has both things in C++ for its own compiler: a function that turns a Python tensor
into its address, and guards that compare type, dtype, device, sizes and strides. Where this torch
lacks them, the plain calls do the same more slowly.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from steprule.engines.kernel_cache import NativeFunction, library_for

try:
    from torch._C._dynamo import guards as _guards
except ImportError:  # pragma: no cover  # a torch without its compiler
    _guards = None  # type: ignore[assignment]

# Where a tuple keeps its items: behind its header.
_HEADER = tuple.__basicsize__


@functools.cache
def _data_ptr_function() -> int | None:
    """Address of torch's ``void* f(PyObject*)``, if it is there and gives the right answer."""
    address = getattr(_guards, "_torchinductor_pyobject_tensor_data_ptr", None)
    if not isinstance(address, int):
        return None
    probe = Tensor([1.0, 2.0])[1:]
    function = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(address)
    probes = (probe,)
    items = ctypes.cast(id(probes) + _HEADER, ctypes.POINTER(ctypes.c_void_p))
    works = function(id(probe)) == probe.data_ptr() and items[0] == id(probe)
    return address if works else None


_SOURCE = f"""\
def addresses(function, items, found, count, _width):
    for i in range(count):
        store_int64(found, i, call_with_pointer(function, load_int64(items, i)))
    return 0

def changed(function, rows, expected, count, width):
    for i in range(count):
        items = load_int64(rows, i) + {_HEADER}
        for k in range(width):
            tensor = load_int64(items, k)
            if tensor != load_int64(expected, 2 * (i * width + k)):
                store_int64(expected, 2 * count * width, 1)
                return 0
            address = load_int64(expected, 2 * (i * width + k) + 1)
            if call_with_pointer(function, tensor) != address:
                store_int64(expected, 2 * count * width, 1)
                return 0
    return 0
"""


@functools.cache
def _native() -> list[NativeFunction]:
    return library_for(_SOURCE, ("addresses", "changed"), arity=5, keeps_gil=True).functions


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
    _native()[0](function, id(tensors) + _HEADER, found.buffer_info()[0], len(tensors), 1)
    return found


class SameTensors:
    """Whether dicts still hold the same tensors under some names, in the same memory.

    Args:
        entries: the dicts; every one has every name.
        names: the names; at least one.
    """

    def __init__(self, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        self._entries = entries
        self._values_of = itemgetter(*names)
        self._is_one_row = len(names) == 1  # itemgetter then gives bare values
        self._count, self._width = len(entries), len(names)
        if self._is_one_row:
            self._count, self._width = 1, len(entries)
        self._known = self._rows()
        tensors = tuple(chain.from_iterable(self._known))
        words = zip(map(id, tensors), addresses_of(tensors), strict=True)
        # Behind what is expected, the word in which the native loop says that it found otherwise.
        self._expected = array("q", [*chain.from_iterable(words), 0])

    def _rows(self) -> tuple[tuple[Tensor, ...], ...]:
        rows = tuple(map(self._values_of, self._entries))
        return (rows,) if self._is_one_row else rows

    def hold(self) -> bool:
        """Whether nothing was replaced, removed or moved."""
        try:
            rows = self._rows()
        except (KeyError, TypeError):
            return False
        function = _data_ptr_function()
        if function is not None:
            self._expected[-1] = 0
            where = self._expected.buffer_info()[0]
            _native()[1](function, id(rows) + _HEADER, where, self._count, self._width)
            return self._expected[-1] == 0
        tensors = tuple(chain.from_iterable(rows))
        words = zip(map(id, tensors), map(Tensor.data_ptr, tensors), strict=True)
        return array("q", [*chain.from_iterable(words), 0]) == self._expected


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
