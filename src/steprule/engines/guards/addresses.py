"""A guard on addresses: tensors are where they were, with the sizes and strides that they had.

Memory, not numbers, is at stake: ``param.data = param.data[:5]`` keeps the address.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor


class AddressGuard:
    """Holds while tensors keep their memory, sizes and strides, and dicts hold these very tensors.

    Args:
        params: tensors that are plain and dense.
        entries: dicts of tensors that are plain and dense.
        names: the keys to look at; every entry has every one.
    """

    def __init__(
        self, params: Sequence[Tensor], entries: Sequence[dict[str, Any]], names: Sequence[str]
    ) -> None:
        self._params, self._entries, self._names = tuple(params), tuple(entries), tuple(names)
        self._slots = tuple(entry[name] for entry in entries for name in names)
        self._known = self._layouts()

    def holds(self) -> bool:
        """Tell whether nothing was replaced, removed, moved or reshaped."""
        slots = iter(self._slots)
        for entry in self._entries:
            if any(entry.get(name) is not next(slots) for name in self._names):
                return False
        return self._layouts() == self._known

    def _layouts(self) -> list[tuple[Any, ...]]:
        return [_layout_of(tensor) for tensor in (*self._params, *self._slots)]


def _layout_of(tensor: Tensor) -> tuple[Any, ...]:
    """Return what must stay as it is for the tensor's memory to be read and written as planned."""
    lazy = tensor.is_conj(), tensor.is_neg()
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, *lazy
