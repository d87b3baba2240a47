"""Addresses of many tensors' memory at once, and whether sequences hold the same objects."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from operator import is_
from typing import Any

from torch import Tensor

from steprule.engines.native_checks import Native, data_ptr_function, items_of, native


def addresses_of(tensors: tuple[Tensor, ...]) -> array[int]:
    """The address of each tensor's first element, 0 for one without memory.

    Args:
        tensors: plain dense tensors (checked before: what has no storage at all would not raise
            here but end the process).
    """
    data_ptr = data_ptr_function()
    if data_ptr is None:
        return array("q", map(Tensor.data_ptr, tensors))
    found = array("q", bytes(8 * len(tensors)))
    native()[Native.ADDRESSES](data_ptr, items_of(tensors), found.buffer_info()[0], len(tensors), 1)
    return found


def are_same(objects: Sequence[Any], known: tuple[Any, ...]) -> bool:
    """Whether two sequences of equal length hold the very same objects."""
    if data_ptr_function() is None or not isinstance(objects, (list, tuple)):
        return all(map(is_, objects, known))
    found = array("q", [0])
    native()[Native.DIFFER](
        items_of(objects), items_of(known), found.buffer_info()[0], len(known), 1
    )
    return not found[0]
