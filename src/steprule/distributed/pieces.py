"""Tensors that lie in pieces in several files: read where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

#: From where to where, for each dimension.
Ranges = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class Piece:
    """A box of a tensor.

    Attributes:
        ranges: where it is in the whole.
        read: gives its elements, in memory that may be a file's; raises if they are damaged.
    """

    ranges: Ranges
    read: Callable[[], Tensor]


class PiecedTensor(Tensor):
    """A tensor of which shape and dtype are known, and its elements where to find.

    Whatever operation it meets, it is read as a whole, so that it is as good as a plain tensor
    everywhere; :meth:`part` reads no more than a part needs.

    Args:
        shape: of the whole.
        dtype: of its elements.
        pieces: boxes that cover it, each element once.
    """

    pieces: Sequence[Piece]

    @staticmethod
    def __new__(
        cls: type[PiecedTensor], shape: Sequence[int], dtype: torch.dtype, pieces: Sequence[Piece]
    ) -> PiecedTensor:
        made: PiecedTensor = Tensor._make_wrapper_subclass(
            cls, torch.Size(shape), dtype=dtype, device=torch.device("cpu")
        )
        made.pieces = pieces
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's own has no types that say so
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found, named = tree_map_only(PiecedTensor, PiecedTensor.whole, (args, kwargs or {}))
        return func(*found, **named)

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch's would read it
        return f"PiecedTensor(shape={tuple(self.shape)}, dtype={self.dtype})"

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.whole()

    def whole(self) -> Tensor:
        """Return all elements in a plain tensor."""
        return self.part([(0, size) for size in self.shape])

    def part(self, ranges: Ranges) -> Tensor:
        """Return a box of it in a plain tensor: the file's own memory where one piece has it."""
        wanted = self._touching(ranges)
        if len(wanted) == 1 and all(
            low <= start and end <= high
            for (start, end), (low, high) in zip(ranges, wanted[0].ranges, strict=True)
        ):
            return _cut(wanted[0], ranges)
        made = torch.empty([end - start for start, end in ranges], dtype=self.dtype)
        for piece in wanted:
            common = _common(ranges, piece.ranges)
            here = zip(common, ranges, strict=True)
            place = tuple(slice(low - own, high - own) for (low, high), (own, _) in here)
            made[place].copy_(_cut(piece, common))
        return made

    def look_at(self, ranges: Ranges | None = None) -> None:
        """Have what a part needs looked at for damage, before anything rests on it.

        Args:
            ranges: the part; None for the whole.
        """
        for piece in self.pieces if ranges is None else self._touching(ranges):
            piece.read()

    def _touching(self, ranges: Ranges) -> list[Piece]:
        return [
            piece
            for piece in self.pieces
            if all(low < high for low, high in _common(ranges, piece.ranges))
        ]


def _common(one: Ranges, other: Ranges) -> list[tuple[int, int]]:
    return [(max(a, b), min(c, d)) for (a, c), (b, d) in zip(one, other, strict=True)]


def _cut(piece: Piece, ranges: Ranges) -> Tensor:
    pairs = zip(ranges, piece.ranges, strict=True)
    return piece.read()[tuple(slice(start - low, end - low) for (start, end), (low, _) in pairs)]
