"""The native loops, compiled once they are worth it, and used where they are safe."""

from __future__ import annotations

import ctypes
import functools
import sys
from array import array
from collections.abc import Sequence
from operator import is_
from typing import Any

import torch

from steprule.engines.kernel_cache.cache import (
    CompilationError,
    NativeFunction,
    is_kept,
    library_for,
)
from steprule.engines.kernel_cache.cached_lookup import cached_lookup
from steprule.engines.native.audit import mismatch_of_probes
from steprule.engines.native.control_block import Control
from steprule.engines.native.loops_text import HEADER, LENGTH, Loop, ProcessWord, source_of
from steprule.engines.native.switch import is_allowed, rule_out, turn_off_for_good
from steprule.engines.native.tensor_layout import TensorLayout, tensor_layout, word
from steprule.engines.torch_library import address_of_function


@cached_lookup
def native() -> list[NativeFunction]:
    """Return the loops, by :class:`Loop`; call only where :func:`is_native_enabled` holds."""
    words = tensor_layout()
    assert words is not None
    names = tuple(loop.name.lower() for loop in Loop)
    title = "the loops around a step"
    return library_for(_source(words), names, arity=4, keeps_gil=True, title=title).functions


def _source(words: TensorLayout) -> str:
    return source_of(words, Control.GRADS)


_is_enabled = False


def enable_native() -> None:
    """Use the loops from now on, compiled or not: a few steps should not wait for that."""
    global _is_enabled
    _is_enabled = True


def is_native_enabled() -> bool:
    """Tell whether the loops are to be used: allowed, worth it or compiled already, and safe."""
    return is_allowed() and (_is_enabled or _are_compiled()) and _are_safe()


@functools.cache
def _are_compiled() -> bool:
    words = tensor_layout()
    return words is not None and is_kept(_source(words))


@functools.cache
def _are_safe() -> bool:
    """Tell whether Python and torch keep their objects as the loops expect; say why if not."""
    reason = _why_unsafe()
    if reason is not None:
        rule_out(reason)
    return reason is None


def _why_unsafe() -> str | None:
    if not getattr(sys, "_is_gil_enabled", lambda: True)():
        return "this Python runs without its global lock"
    if sys.implementation.name != "cpython":
        return f"they read CPython's objects, and this is {sys.implementation.name}"
    layout = tensor_layout()
    if layout is None:
        return f"torch {torch.__version__} keeps its tensors otherwise than is known"
    found = mismatch_of_probes(layout)
    if found is not None:
        turn_off_for_good(found)
        return f"a tensor's {found} is not where it was looked for"
    probe = object()
    pair, both, named = (None, probe), [None, probe], {"none": None, "probe": probe}
    has_items = all(word(items_of(x) + 8) == id(probe) for x in (pair, both))
    has_length = all(word(id(x) + LENGTH) == 2 for x in (pair, both, named))
    if not has_items or not has_length:
        return f"Python {sys.version.split()[0]} keeps its lists otherwise than is known"
    return _why_not_compiled()


def _why_not_compiled() -> str | None:
    try:
        return None if native() else "they could not be compiled"
    except CompilationError as error:
        return str(error)


@functools.cache
def process_words() -> array[int]:
    """Return what the loops must be told of this process: see :class:`ProcessWord`."""
    words = tensor_layout()
    assert words is not None
    known = array("q", bytes(8 * (ProcessWord.CELL + 3)))
    known[ProcessWord.NEXT_ITEM] = _address_of(ctypes.pythonapi.PyDict_Next)
    known[ProcessWord.INCREASE] = _address_of(ctypes.pythonapi.Py_IncRef)
    known[ProcessWord.DECREASE] = _address_of(ctypes.pythonapi.Py_DecRef)
    known[ProcessWord.NONE] = id(None)
    known[ProcessWord.TENSOR], known[ProcessWord.PARAMETER] = (
        id(torch.Tensor),
        id(torch.nn.Parameter),
    )
    # A new reference to a tensor, and its end; torch 2.5 has the first by its second name only.
    known[ProcessWord.NEW_HANDLE] = address_of_function(
        "aoti_torch_new_tensor_handle", "aoti_torch_assign_tensors_out"
    )
    known[ProcessWord.DELETE_HANDLE] = address_of_function("aoti_torch_delete_tensor_object")
    known[ProcessWord.UNDEFINED] = words.undefined
    return known


def can_hold_tensors() -> bool:
    """Tell whether this torch has the functions by which a loop can hold a gradient."""
    known = process_words()
    return known[ProcessWord.NEW_HANDLE] != 0 and known[ProcessWord.DELETE_HANDLE] != 0


def _address_of(function: Any) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def address_of(words: array[int]) -> int:
    """Return where an array's first word is."""
    return words.buffer_info()[0]


def items_of(objects: list[Any] | tuple[Any, ...]) -> int:
    """Return the address of the first item's."""
    where = id(objects) + HEADER
    return word(where) if isinstance(objects, list) else where


def are_same(objects: Sequence[Any], known: tuple[Any, ...]) -> bool:
    """Tell whether two sequences of equal length hold the very same objects."""
    if not is_native_enabled() or not isinstance(objects, (list, tuple)):
        return all(map(is_, objects, known))
    found = array("q", [0])
    native()[Loop.DIFFER](items_of(objects), items_of(known), len(known), address_of(found))
    return not found[0]
