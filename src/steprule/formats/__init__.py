"""Storage formats: how an array is kept, and how it is read and written.

A rule always computes in float32 (float64 for float64 parameters); a format turns what is
stored into that and back. Formats know no rule and no engine. What an engine needs of one is
:class:`Format`; which one an array gets is said in :mod:`~steprule.formats.storage`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

__all__ = ["BlockFormat", "Column", "Format"]


@dataclass(frozen=True)
class Column:
    """One of the tensors that an array is stored in.

    Attributes:
        part: its key in the state is ``"<array>:<part>"``; ``""`` for the array's own tensor,
            which has the array's name.
        dtype: of its items.
        elements: how many neighbours share an item, a power of two. With 1 the tensor has the
            parameter's shape, otherwise one axis.
    """

    part: str
    dtype: torch.dtype
    elements: int = 1

    def length(self, elements: int) -> int:
        """Return the number of items for so many elements."""
        return -(-elements // self.elements)

    def bytes_for(self, elements: int) -> int:
        """Return the bytes that so many elements take."""
        return self.length(elements) * self.dtype.itemsize


class Format(Protocol):
    """How an array is stored: in which columns, and how they are read and written.

    Tensors are read and written whole (``read``, ``write``), elements in the order of the
    parameter's axes. The fused engine's kernel reads and writes element ``index`` by text in the
    kernels' language (``kernel_read``, ``kernel_write``) over addresses in variables, one for
    each column. ``is_random`` formats round up or down by 32 random bits an element: tensors of
    int32 for ``write`` (None: round to nearest), the name of a variable for ``kernel_write``.
    """

    @property
    def name(self) -> str: ...
    @property
    def columns(self) -> tuple[Column, ...]: ...
    @property
    def is_random(self) -> bool: ...
    def read(
        self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size
    ) -> Tensor: ...
    def write(
        self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None
    ) -> None: ...
    def kernel_read(self, addresses: Sequence[str], index: str) -> str: ...
    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]: ...


@runtime_checkable
class BlockFormat(Protocol):
    """What a format of blocks of elements that share a scale has instead of text for elements.

    The kernel keeps a block's numbers as float32 in ``room``: ``kernel_read_block`` writes the
    text that fills it with the ``count`` elements from element ``first`` on (a multiple of
    ``block``), ``kernel_write_block`` the text that stores what is there. ``name`` makes names of
    variables, ``key`` is that of the key of the array's random bits, ``origin`` that of the number
    (int32) of element ``first`` in the whole parameter.
    """

    block: int

    def kernel_read_block(
        self, name: str, addresses: Sequence[str], count: str, room: str
    ) -> list[str]: ...
    def kernel_write_block(
        self, name: str, addresses: Sequence[str], count: str, room: str, key: str
    ) -> list[str]: ...
