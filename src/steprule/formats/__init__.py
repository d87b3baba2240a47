"""Storage formats: how an array is kept, and how a block of it is read and written.

A rule always computes in float32 (float64 for float64 parameters); a format turns what is
stored into that and back. Formats know no rule and no engine. What an engine needs of one is
:class:`Format`; :func:`format_of` says which format a stored array has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, dtype

from steprule.formats.floating import FLOATING

__all__ = ["Format", "format_of"]


class Format(Protocol):
    """What an engine asks of a format.

    ``columns`` are the tensors that hold the stored array (one for plain floats; codes and
    scales for a blockwise format): the fused engine passes their addresses to its kernel, which
    reads and writes element ``index`` by the two lines of source that the format supplies, over
    the addresses in variables named by ``columns``. ``block`` elements at a time share a scale
    (1: none): the kernel's chunks start at multiples of it.
    """

    @property
    def name(self) -> str: ...
    @property
    def block(self) -> int: ...
    @property
    def epsilon(self) -> float: ...
    def columns(self, stored: Any) -> tuple[Tensor, ...]: ...
    def read(self, stored: Any, compute: dtype) -> Tensor: ...
    def write(self, stored: Any, value: Tensor) -> None: ...
    def kernel_read(self, columns: Sequence[str], index: str) -> str: ...
    def kernel_write(self, columns: Sequence[str], index: str, value: str) -> str: ...
    def bytes_for(self, elements: int) -> int: ...


def format_of(stored: Any) -> Format:
    """Return the format of one stored array (a parameter, a gradient or a state slot).

    Raises:
        KeyError: none of the formats stores such a thing.
    """
    return FLOATING[stored.dtype]
