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

__all__ = ["BlockFormat", "Column", "ElementFormat", "Format"]


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

    Tensors are read and written whole; elements count in the order of the parameter's axes. A
    format that ``is_random`` rounds up or down by 32 random bits an element, tensors of int32 (of
    which the upper bits are the good ones); to nearest where it is given none.
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


@runtime_checkable
class ElementFormat(Protocol):
    """What the fused engine's kernels ask of a format whose elements stand alone.

    Statements in the kernels' language: that give ``result`` the number of element ``index``, and
    that store one. ``addresses`` are the variables with the address of each column, ``word`` that
    of the element's random bits (int32).
    """

    @property
    def columns(self) -> tuple[Column, ...]: ...
    def kernel_read(self, addresses: Sequence[str], index: str, result: str) -> list[str]: ...
    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]: ...


@runtime_checkable
class BlockFormat(Protocol):
    """What the kernels ask of a format of blocks of elements that share a scale.

    The kernel takes a block at a time, in two loops over its elements: in the first they are
    decoded and the new numbers computed, in the second these are encoded. Around these it is told
    what a whole block needs. ``name`` is the array's, for names of variables; the variables that
    there are:

    - ``first``, the block's first element in its chunk; ``at``, the element at hand there;
      ``place``, its number in the block;
    - ``{name}_most``, once all new numbers are known: the bits of the largest magnitude among
      them that is finite; ``is_special`` says whether there are others;
    - ``part`` and ``i``: a block whose elements share bytes is taken in that many parts, of which
      this is the number, and the element's number in it.
    """

    block: int

    @property
    def columns(self) -> tuple[Column, ...]: ...
    def kernel_open(self, name: str, addresses: Sequence[str]) -> list[str]: ...
    def kernel_is_special(self, name: str) -> str: ...
    def kernel_decode(
        self, name: str, addresses: Sequence[str], result: str, *, is_special: bool
    ) -> list[str]: ...
    def kernel_scale(self, name: str, *, is_special: bool) -> list[str]: ...
    def kernel_close(self, name: str, addresses: Sequence[str]) -> list[str]: ...
    def kernel_encode(
        self, name: str, addresses: Sequence[str], value: str, word: str, *, is_special: bool
    ) -> list[str]: ...
