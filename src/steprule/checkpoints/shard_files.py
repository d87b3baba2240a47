"""Files in which ranks have stored their parts of tensors: read as an index says.

The index's metadata has ``files`` (names and lengths) and ``sharded``: for each tensor its dtype,
its shape, and which of its pieces are its own among the rows of two tensors, ``PLACES`` (the number
of the file, the first byte in it, and from where to where the piece is in each dimension) and
``DIGESTS`` (SHA-256 of its bytes).
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import mmap
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steprule.checkpoints.errors import CheckpointError
from steprule.checkpoints.nested import DTYPES
from steprule.checkpoints.shard_names import PLAIN
from steprule.distributed.pieces import Piece, PiecedTensor, Ranges

#: Names of tensors in the index, which none of a checkpoint's own can have: those are of a part.
PLACES, DIGESTS = "shards/places", "shards/digests"
FILES, SHARDED = "files", "sharded"
_DTYPES = {name: dtype for dtype, name in DTYPES.items()}
_DIGEST = 32
# Boxes into which the pieces of one tensor may cut it: more than any mesh makes.
_MOST_CELLS = 1 << 24


@dataclass(frozen=True)
class Entry:
    """What an index says of a tensor.

    Attributes:
        dtype: by its name in safetensors.
        shape: of the whole.
        first_place: of its rows' numbers, which follow each other.
        first: the number of its first piece.
        count: of its pieces.
    """

    dtype: str
    shape: tuple[int, ...]
    first_place: int
    first: int
    count: int


class ShardFiles:
    """The files that an index names, each looked at when something in it is read.

    Args:
        path: the index.
        metadata: its header's.
        tensor_named: gives the tensors in it.

    Raises:
        CheckpointError: it names files that can't be its own.
    """

    def __init__(
        self, path: Path, metadata: Mapping[str, str], tensor_named: Callable[[str], Tensor]
    ) -> None:
        self._folder = Path(os.path.realpath(path)).parent
        self._files: list[_File] = []
        self._entries: Any = {}
        if FILES not in metadata:
            return
        self._files = _files_in(_parsed(metadata[FILES]), self._folder)
        self._entries = _parsed(metadata.get(SHARDED, ""))
        places, digests = tensor_named(PLACES), tensor_named(DIGESTS)
        if places.dtype is not torch.int64 or digests.dtype is not torch.uint8:
            raise CheckpointError("its tables of places and digests are none")
        # Copies: the index's own memory may go before that of the files.
        self._places = places.flatten().clone().numpy()
        self._digests = digests.flatten().numpy().tobytes()

    def tensor_named(self, name: str) -> Tensor:
        """Return a tensor of which ranks have stored parts.

        Raises:
            CheckpointError: there is none, or its parts are not where they could be.
        """
        try:
            entry = Entry(*self._entries[name])
            entry = Entry(entry.dtype, tuple(entry.shape), *_counts(entry))
            return self._tensor(name, entry)
        except (LookupError, TypeError, ValueError, OverflowError, RuntimeError):
            raise CheckpointError(f"what it says of its tensor {name!r} makes no sense") from None

    def _tensor(self, name: str, entry: Entry) -> Tensor:
        dtype, dims = _DTYPES[entry.dtype], len(entry.shape)
        if any(type(size) is not int or size < 0 for size in entry.shape):
            raise ValueError
        width = 2 + 2 * dims
        last = entry.first_place + entry.count * width
        if last > len(self._places) or (entry.first + entry.count) * _DIGEST > len(self._digests):
            raise ValueError
        rows = self._places[entry.first_place : last].reshape(entry.count, width).tolist()
        pieces, boxes = [], []
        for i, (number, start, *bounds) in enumerate(rows, entry.first):
            ranges = tuple(zip(bounds[:dims], bounds[dims:], strict=True))
            if not 0 <= number < len(self._files):
                raise ValueError
            digest = self._digests[i * _DIGEST : (i + 1) * _DIGEST]
            box = Box(name, dtype, start, ranges, digest)
            pieces.append(Piece(ranges, functools.partial(self._files[number].read, box)))
            boxes.append(ranges)
            self._files[number].check(box)
        problem = cover_problem(entry.shape, boxes)
        if problem is not None:
            raise CheckpointError(f"the pieces of its tensor {name!r} {problem}")
        return PiecedTensor(entry.shape, dtype, pieces)


def _counts(entry: Entry) -> Sequence[int]:
    found = (entry.first_place, entry.first, entry.count)
    if any(type(x) is not int or x < 0 for x in found):
        raise ValueError
    return found


@dataclass(frozen=True)
class Box:
    """A piece in a file: of which tensor, where, and what its bytes come to."""

    name: str
    dtype: torch.dtype
    start: int
    ranges: Ranges
    digest: bytes

    @property
    def shape(self) -> list[int]:
        """Its own."""
        return [end - start for start, end in self.ranges]

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.start + math.prod(self.shape) * self.dtype.itemsize


@dataclass
class _File:
    path: Path
    size: int
    _map: mmap.mmap | None = None
    _seen: set[int] = field(default_factory=set)

    def check(self, box: Box) -> None:
        if not 0 <= box.start <= box.end <= self.size or any(n <= 0 for n in box.shape):
            raise ValueError

    def read(self, box: Box) -> Tensor:
        """Return a piece, in the file's own memory; its digest has been looked at.

        Raises:
            CheckpointError: the file is another one, or damaged.
        """
        if self._map is None:
            self._map = self._mapped()
        count = box.end - box.start
        if box.start not in self._seen:
            with memoryview(self._map) as view, view[box.start : box.end] as data:
                found = hashlib.sha256(data).digest()
            if found != box.digest:
                raise CheckpointError(
                    f"{self.path} is damaged: the digest of its part of {box.name!r} is another "
                    "than when it was written. Bits of it have changed: take another copy"
                )
            self._seen.add(box.start)
        held = torch.frombuffer(self._map, dtype=torch.uint8, count=count, offset=box.start)
        if box.start % box.dtype.itemsize:
            held = held.clone()
        return held.view(box.dtype).reshape(box.shape)

    def _mapped(self) -> mmap.mmap:
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        try:
            descriptor = os.open(self.path, flags)
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.path} is missing, in which a rank has stored its part: it belongs beside "
                "the file that was loaded. (If another checkpoint was saved there meanwhile, load "
                "again)"
            ) from None
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode) or found.st_size != self.size:
                raise CheckpointError(
                    f"{self.path} is damaged: it has {found.st_size} bytes, it was written with "
                    f"{self.size}. It was cut short, or is another file: take another copy"
                )
            # Its pages are this process's own, should anybody write to a tensor.
            return mmap.mmap(descriptor, 0, access=mmap.ACCESS_COPY)
        finally:
            os.close(descriptor)


def _files_in(listed: Any, folder: Path) -> list[_File]:
    """Return the files that an index names: such as lie beside it, and no paths to elsewhere."""
    found = []
    for one in listed if isinstance(listed, list) else [None]:
        if not (
            isinstance(one, list)
            and len(one) == 2
            and isinstance(one[0], str)
            and PLAIN.fullmatch(one[0])
            and type(one[1]) is int
            and one[1] > 0
        ):
            raise CheckpointError(f"it names {one!r:.80} as a file beside it, which can't be one")
        found.append(_File(folder / one[0], one[1]))
    return found


def file_names(metadata: Mapping[str, str]) -> list[str]:
    """Return the names of the files of parts that an index's metadata has; none of another's."""
    try:
        listed = _files_in(_parsed(metadata.get(FILES, "[]")), Path())
    except CheckpointError:
        return []
    return [each.path.name for each in listed]


def cover_problem(shape: Sequence[int], boxes: Sequence[Ranges]) -> str | None:
    """Say why boxes do not cover a tensor, each element once; None if they do."""
    sizes = [math.prod(end - start for start, end in box) for box in boxes]
    if not all(
        0 <= start < end <= size
        for box in boxes
        for (start, end), size in zip(box, shape, strict=True)
    ):
        return "are not within it"
    if sum(sizes) != math.prod(shape):
        return f"have {sum(sizes)} elements, it has {math.prod(shape)}"
    if len(boxes) < 2:
        return None
    # Which boxes of the grid that all bounds together make.
    bounds = [sorted({x for box in boxes for x in box[dim]}) for dim in range(len(shape))]
    cells = [len(each) - 1 for each in bounds]
    if math.prod(cells) > _MOST_CELLS:
        return "are too many"
    at = [{x: i for i, x in enumerate(each)} for each in bounds]
    taken = np.zeros(cells, dtype=bool)
    for box in boxes:
        place = tuple(slice(at[d][start], at[d][end]) for d, (start, end) in enumerate(box))
        if taken[place].any():
            return "overlap"
        taken[place] = True
    return None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
