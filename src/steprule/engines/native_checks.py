"""Native loops over Python's and torch's own objects: what a thousand Python calls would take.

They read the words of tensors (tensor_words.py). Objects lie all over memory, so the loops ask for
those of the rows to come while they look at one.
"""

from __future__ import annotations

import enum
import functools
import sys
from array import array
from collections.abc import Sequence
from operator import is_
from typing import Any

from steprule.engines.kernel_cache import CompilationError, NativeFunction, is_kept, library_for
from steprule.engines.remembered import remembered
from steprule.engines.tensor_words import INLINE_AXES, TOLD, TensorWords, tensor_words, word

# Where a tuple keeps its items: behind its header. A list has their address there.
_HEADER = tuple.__basicsize__
# Where a dict keeps the address of its keys; only a hint of what will be read.
_DICT_KEYS = 32


class Native(enum.IntEnum):
    """Index of each loop in :func:`native`."""

    DIFFER = 0
    FOLDS = 1
    MOVED = 2
    GRADS = 3
    BUMP = 4


_SOURCE = """\
def fold_of(impl):
    # Sizes, strides and kind folded into one word; of a tensor that keeps its sizes elsewhere, a
    # word that no other has.
    axes = load_int64(impl + {shape}, 0)
    fold = axes
    if axes < 0 or axes > {inline}:
        return -1 - impl
    for axis in range(axes):
        fold = (fold ^ load_int64(impl + {sizes}, axis)) * {factor}
        fold = (fold ^ load_int64(impl + {strides}, axis)) * {factor}
    fold = (fold ^ load_int64(impl + {kind}, 0)) * {factor}
    fold = (fold ^ load_int64(impl + {kind}, 1)) * {factor}
    fold = (fold ^ (load_int64(impl + {kind}, 2) & {told})) * {factor}
    return (fold ^ load_int64(impl + {kind}, 3)) * {factor}

def differ(items, known, found, count, _width):
    for i in range(count):
        if load_int64(items, i) != load_int64(known, i):
            store_int64(found, 0, 1)
            return 0
    return 0

def folds(impls, found, count, _a, _b):
    for i in range(count):
        store_int64(found, i, fold_of(load_int64(impls, i)))
    return 0

def moved(control, records, found, count, width):
    get_item = load_int64(control, 0)
    entries = load_int64(control, 1)
    store_int64(found, 0, 1)
    for i in range(count):
        if i + 8 < count:
            prefetch(load_int64(entries, i + 8))
            for k in range(width):
                prefetch(load_int64(records, 4 * ((i + 8) * width + k)))
                ahead = load_int64(records, 4 * ((i + 8) * width + k) + 1)
                prefetch(ahead)
                prefetch(ahead + {shape})
                prefetch(ahead + {kind})
        if i + 4 < count:
            keys = load_int64(load_int64(entries, i + 4) + {dict_keys}, 0)
            prefetch(keys)
            prefetch(keys + 64)
            prefetch(keys + 128)
            for k in range(width):
                ahead = load_int64(records, 4 * ((i + 4) * width + k))
                prefetch(load_int64(load_int64(ahead + {tensor}, 0) + {storage}, 0))
        entry = load_int64(entries, i)
        for k in range(width):
            record = records + 32 * (i * width + k)
            tensor = call_with_pointers(get_item, entry, load_int64(control, 2 + k))
            if tensor != load_int64(record, 0):
                return 0
            impl = load_int64(tensor + {tensor}, 0)
            if impl != load_int64(record, 1):
                return 0
            storage = load_int64(impl + {storage}, 0)
            if storage == 0:
                return 0
            if load_int64(storage + {data}, 0) != load_int64(record, 2):
                return 0
            if fold_of(impl) != load_int64(record, 3):
                return 0
    store_int64(found, 0, 0)
    return 0

def grads(control, records, found, count, _width):
    params = load_int64(control, 0)
    given = load_int64(control, 1)
    none = load_int64(control, 2)
    number = 0
    store_int64(found, count + 1, 1)
    for i in range(count):
        if i + 8 < count:
            prefetch(load_int64(given, i + 8))
            ahead = load_int64(load_int64(params, i + 8) + {tensor}, 0)
            prefetch(ahead)
            prefetch(ahead + {shape})
            prefetch(ahead + {kind})
        if i + 4 < count:
            ahead = load_int64(load_int64(params, i + 4) + {tensor}, 0)
            prefetch(load_int64(ahead + {storage}, 0))
            if load_int64(given, i + 4) != none:
                ahead = load_int64(load_int64(given, i + 4) + {tensor}, 0)
                prefetch(ahead)
                prefetch(ahead + {shape})
                prefetch(ahead + {kind})
        record = records + 32 * i
        impl = load_int64(load_int64(params, i) + {tensor}, 0)
        storage = load_int64(impl + {storage}, 0)
        if storage == 0:
            return 0
        if load_int64(storage + {data}, 0) != load_int64(record, 0):
            return 0
        if fold_of(impl) != load_int64(record, 1):
            return 0
        if load_int64(given, i) == none:
            store_int64(found, i, 0)
        else:
            impl = load_int64(load_int64(given, i) + {tensor}, 0)
            if fold_of(impl) != load_int64(record, 2):
                return 0
            storage = load_int64(impl + {storage}, 0)
            if storage == 0:
                return 0
            data = load_int64(storage + {data}, 0)
            if data == 0:
                return 0
            store_int64(found, i, data + load_int64(record, 3))
            number += 1
    store_int64(found, count, number)
    store_int64(found, count + 1, 0)
    return 0

def bump(params, found, count, _a, _b):
    for i in range(count):
        if i + 16 < count:
            prefetch(load_int64(load_int64(params, i + 16) + {tensor}, 0))
        if i + 8 < count:
            ahead = load_int64(load_int64(params, i + 8) + {tensor}, 0)
            prefetch(load_int64(ahead + {counter}, 0))
        if load_int64(found, i) != 0:
            impl = load_int64(load_int64(params, i) + {tensor}, 0)
            version = load_int64(impl + {counter}, 0) + {version}
            store_int64(version, 0, load_int64(version, 0) + 1)
    return 0
"""


def _source(words: TensorWords) -> str:
    places = {
        "tensor": words.tensor,
        "shape": words.shape,
        "storage": words.storage,
        "data": words.data,
        "counter": words.counter,
        "version": words.version,
        "inline": INLINE_AXES,
        "sizes": words.shape + 8,
        "strides": words.shape + 8 * (1 + INLINE_AXES),
        "kind": words.shape + 8 * (1 + 2 * INLINE_AXES),
        "told": TOLD,
        "dict_keys": _DICT_KEYS,
        "factor": -7046029254386353131,  # odd, so that no change of one word is lost
    }
    return _SOURCE.format(**places)


@remembered
def native() -> list[NativeFunction]:
    """The loops, by :class:`Native`; call only where :func:`is_native` holds."""
    words = tensor_words()
    assert words is not None
    names = tuple(loop.name.lower() for loop in Native)
    title = "the checks before a step"
    return library_for(_source(words), names, arity=5, keeps_gil=True, title=title).functions


_is_wanted = False


def want_native() -> None:
    """Use the loops from now on, compiled or not: a few steps should not wait for that."""
    global _is_wanted
    _is_wanted = True


def is_native() -> bool:
    """Whether the loops are to be used: wanted or compiled already, and safe here."""
    return (_is_wanted or _are_compiled()) and _are_safe()


@functools.cache
def _are_compiled() -> bool:
    words = tensor_words()
    return words is not None and is_kept(_source(words))


@functools.cache
def _are_safe() -> bool:
    """Whether Python and torch keep their objects as the loops expect."""
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    if not has_lock or sys.implementation.name != "cpython" or tensor_words() is None:
        return False
    probe = object()
    pair, both = (None, probe), [None, probe]
    return all(word(items_of(x) + 8) == id(probe) for x in (pair, both)) and _can_compile()


def _can_compile() -> bool:
    try:
        return len(native()) > 0
    except CompilationError:
        return False


def items_of(objects: list[Any] | tuple[Any, ...]) -> int:
    """The address of the first item's."""
    where = id(objects) + _HEADER
    return word(where) if isinstance(objects, list) else where


def are_same(objects: Sequence[Any], known: tuple[Any, ...]) -> bool:
    """Whether two sequences of equal length hold the very same objects."""
    if not is_native() or not isinstance(objects, (list, tuple)):
        return all(map(is_, objects, known))
    found = array("q", [0])
    native()[Native.DIFFER](
        items_of(objects), items_of(known), found.buffer_info()[0], len(known), 1
    )
    return not found[0]
