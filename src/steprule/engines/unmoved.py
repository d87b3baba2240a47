"""Whether tensors are where they were, with the sizes and strides that they had.

Memory, not numbers, is at stake: ``param.data = param.data[:5]`` keeps the address.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steprule.engines.native_checks import Native, is_native, items_of, native
from steprule.engines.tensor_words import has_plain_shape


class Unmoved:
    """Remembers tensors' memory, sizes and strides, and that dicts hold these very tensors.

    Args:
        entries: dicts of tensors that are plain and dense.
        names: the keys to watch; every entry has every one.
    """

    def __init__(self, entries: Sequence[dict[str, Any]], names: Sequence[str]) -> None:
        self._entries, self._names = tuple(entries), tuple(names)
        self._tensors = tuple(entry[name] for entry in entries for name in names)
        self._known: list[Any] = []
        self._records: array[int] | None = None
        self._may_be_native = all(type(entry) is dict for entry in entries) and all(
            map(has_plain_shape, self._tensors)
        )
        if self._may_be_native and is_native():
            self._go_native()
        else:
            self._known = [looks_of(tensor) for tensor in self._tensors]

    def hold(self) -> bool:
        """Whether nothing was replaced, removed, moved or reshaped."""
        if self._records is not None:
            native()[Native.MOVED](
                self._control.buffer_info()[0],
                self._records.buffer_info()[0],
                self._found.buffer_info()[0],
                len(self._entries),
                len(self._names),
            )
            return not self._found[0]
        holds = self._hold_by_python()
        if holds and self._may_be_native and is_native():
            self._go_native()
        return holds

    def _go_native(self) -> None:
        get_item = ctypes.cast(ctypes.pythonapi.PyDict_GetItemWithError, ctypes.c_void_p).value
        self._control = array("q", [get_item or 0, items_of(self._entries), *map(id, self._names)])
        self._records = records_of(self._tensors)
        self._found = array("q", [0])
        self._known.clear()

    def _hold_by_python(self) -> bool:
        tensors = iter(self._tensors)
        for entry in self._entries:
            if any(entry.get(name) is not next(tensors) for name in self._names):
                return False
        return [looks_of(tensor) for tensor in self._tensors] == self._known


def records_of(tensors: Sequence[Tensor]) -> array[int]:
    """For each tensor: its object, itself, its storage's address, and its sizes folded."""
    records = array("q")
    for tensor, fold in zip(tensors, folds_of(tensors), strict=True):
        records.extend((id(tensor), tensor._cdata, tensor.untyped_storage().data_ptr(), fold))
    return records


def folds_of(tensors: Sequence[Tensor]) -> array[int]:
    """The sizes, strides and kind of each tensor, folded into one word."""
    impls = array("q", [tensor._cdata for tensor in tensors])
    found = array("q", bytes(8 * len(impls)))
    native()[Native.FOLDS](impls.buffer_info()[0], found.buffer_info()[0], len(impls), 0, 0)
    return found


def looks_of(tensor: Tensor) -> tuple[Any, ...]:
    """What must stay as it is for the tensor's memory to be read and written as planned."""
    lazy = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *lazy
