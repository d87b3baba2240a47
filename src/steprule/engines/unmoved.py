"""Whether tensors are where they were, with the sizes and strides that they had.

Memory, not numbers, is at stake: ``param.data = param.data[:5]`` keeps the address.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from steprule.engines.addresses import addresses_of
from steprule.engines.native_checks import data_ptr_function, items_of, native, shape_of


class Unmoved:
    """Remembers tensors' memory, sizes and strides.

    Args:
        tensors: plain dense tensors; with ``entries``, one row of ``names`` for each entry.
        entries: dicts that must still hold the very same tensors.
        names: their keys there.
    """

    def __init__(
        self,
        tensors: Sequence[Tensor],
        entries: Sequence[dict[str, Any]] = (),
        names: Sequence[str] = (),
    ) -> None:
        self._tensors = tuple(tensors)
        self._entries, self._names = tuple(entries), tuple(names)
        self._known: list[Any] = []
        self._expected = array("q", [0])
        data_ptr = data_ptr_function()
        if data_ptr is None or any(type(entry) is not dict for entry in entries):
            self._functions: array[int] | None = None
            self._known = [_looks(tensor) for tensor in self._tensors]
            return
        get_item = ctypes.cast(ctypes.pythonapi.PyDict_GetItemWithError, ctypes.c_void_p).value
        self._functions = array("q", [data_ptr, get_item or 0, *map(id, self._names)])
        for tensor, address in zip(self._tensors, addresses_of(self._tensors), strict=True):
            shape = (tensor.dim(), *tensor.shape, *tensor.stride())
            self._expected.extend((id(tensor), address, shape_of(tensor), *shape))

    def hold(self) -> bool:
        """Whether nothing was replaced, removed, moved or reshaped."""
        if self._functions is None:
            return self._hold_by_python()
        native()[2](
            self._functions.buffer_info()[0],
            items_of(self._entries) if self._entries else 0,
            self._expected.buffer_info()[0],
            len(self._entries) or len(self._tensors),
            len(self._names) or 1,
        )
        return not self._expected[0]

    def _hold_by_python(self) -> bool:
        tensors = iter(self._tensors)
        for entry in self._entries:
            if any(entry.get(name) is not next(tensors) for name in self._names):
                return False
        return [_looks(tensor) for tensor in self._tensors] == self._known


def _looks(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.data_ptr(), tensor.shape, tensor.stride()
