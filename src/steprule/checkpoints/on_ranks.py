"""A checkpoint of many ranks: each writes a file with its parts, the first of them an index.

Nothing counts until the index has taken the place of the one before, as a whole; only then are the
files of that one removed. A rank tells the others what went wrong with it, and all raise alike.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

from steprule.checkpoints.file import INDEX_VERSION, Stored, metadata_of, path_of, write, write_to
from steprule.checkpoints.nested import DEPTH, DTYPES, Flattened
from steprule.checkpoints.random_states import OF_RANKS
from steprule.checkpoints.replacing import flush_folder, lock, replacing
from steprule.checkpoints.shard_files import (
    DIGESTS,
    FILES,
    PLACES,
    SHARDED,
    cover_problem,
    file_names,
)
from steprule.checkpoints.shard_names import name_of, new_token, remove_parts
from steprule.distributed.pieces import Ranges
from steprule.distributed.shards import is_sharded

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def save(
    path: str | os.PathLike[str],
    content: Mapping[str, Any],
    about: Mapping[str, str],
    own: Sequence[str] = (),
    *,
    group: ProcessGroup | None = None,
) -> None:
    """Write a checkpoint: one file, or one for each rank if any tensor is sharded over several.

    Args:
        path: the file.
        content: a nested value by the names of its parts. What is not sharded is taken from the
            first rank.
        about: metadata for people.
        own: names of parts that each rank has of its own.
        group: ranks of which each has called this with the same content, to be written by the
            first; None if nothing is known of any.

    Raises:
        TypeError: something that a checkpoint can't hold, named by its place, on any rank.
        OSError: a file can't be written, by any rank.
        RuntimeError: a rank is gone, or has saved something else.
    """
    meshes = {tuple(x.device_mesh.mesh.flatten().tolist()): x for x in _sharded_in(content)}
    if meshes:
        _Saving(path_of(path), _group_of(meshes)).save(content, about, own)
    elif group is None:
        write(path, content, about)
    else:
        _write_by_first(path, content, about, group)


def _write_by_first(
    path: str | os.PathLike[str],
    content: Mapping[str, Any],
    about: Mapping[str, str],
    group: ProcessGroup,
) -> None:
    """Have the first rank of a group write a file; all raise what it raises.

    Raises:
        TypeError, OSError: as :func:`save`.
        RuntimeError: what the first rank has raised can't be sent.
    """
    import torch.distributed as dist

    told: list[Any] = [None]
    raised: BaseException | None = None
    if dist.get_rank(group) == 0:
        try:
            write(path, content, about)
        except BaseException as error:  # noqa: BLE001  # told to all
            raised = error
            told = [f"{type(error).__name__}: {error}"]
            if type(error) in (TypeError, OSError, FileNotFoundError, PermissionError):
                told = [error]
    dist.broadcast_object_list(told, dist.get_global_rank(group, 0), group)
    if raised is not None:
        raise raised
    (problem,) = told
    if isinstance(problem, Exception):
        raise problem
    if problem is not None:
        raise RuntimeError(f"the first rank could not write {path}: {problem}")


def _sharded_in(value: Any, depth: int = 0) -> Iterator[Any]:
    """Give the tensors in a value that are sharded over several ranks."""
    if isinstance(value, Tensor):
        if is_sharded(value) and value.device_mesh.size() > 1:
            yield value
    elif isinstance(value, Mapping) and depth <= DEPTH:
        for inner in value.values():
            yield from _sharded_in(inner, depth + 1)
    elif isinstance(value, (list, tuple)) and depth <= DEPTH:
        for inner in value:
            yield from _sharded_in(inner, depth + 1)


def _group_of(meshes: Mapping[tuple[int, ...], Any]) -> ProcessGroup:
    """Return the process group of the ranks of all meshes.

    Raises:
        RuntimeError: there is none.
    """
    import torch.distributed as dist

    everyone = {rank for ranks in meshes for rank in ranks}
    world = dist.group.WORLD
    if world is not None and len(everyone) == dist.get_world_size():
        return world
    for ranks, tensor in meshes.items():
        if len(ranks) == len(everyone) and tensor.device_mesh.ndim == 1:
            group: ProcessGroup = tensor.device_mesh.get_group()
            return group
    raise RuntimeError(
        f"what is to be saved is sharded over the ranks {sorted(everyone)}, which are neither all "
        "ranks nor a mesh of one dimension: save it with torch.distributed.checkpoint"
    )


@dataclass(frozen=True)
class _Stored:
    """What a rank tells of its file: its length, and where each of its pieces is."""

    size: int
    pieces: Mapping[str, tuple[str, tuple[int, ...], Ranges, int, bytes]]


class _Saving:
    """One checkpoint being saved.

    Args:
        path: of the index.
        group: the ranks that save it.
    """

    def __init__(self, path: Path, group: ProcessGroup) -> None:
        import torch.distributed as dist

        self._dist, self._group = dist, group
        self._path = path
        self._target = Path(os.path.realpath(path))
        self._rank, self._size = dist.get_rank(group), dist.get_world_size(group)
        self._first = dist.get_global_rank(group, 0)

    def save(
        self, content: Mapping[str, Any], about: Mapping[str, str], own: Sequence[str]
    ) -> None:
        """Write what this rank has; raise on every rank if any can't."""
        tokens = self._all(new_token() if self._rank == 0 else None)
        name = name_of(self._target, tokens[0], self._rank, self._size)
        file_path = self._target.with_name(name)
        with ExitStack() as held:
            taken, stored, problem = None, None, None
            try:
                taken = Flattened({key: x for key, x in content.items() if key not in own})
                stored = self._write_part(file_path, taken, held)
            except Exception as error:  # noqa: BLE001  # told to all
                problem = error
            try:
                problems = self._all(None if problem is None else (_kind(problem), str(problem)))
                owned = self._gathered({key: content[key] for key in own if key in content})
                # Whoever does not send this keeps the first rank from writing an index.
            except BaseException:
                file_path.unlink(missing_ok=True)
                raise
            if any(problems):
                file_path.unlink(missing_ok=True)
                self._raise(problems, problem)
            tables = self._gathered(stored)
            problem = None
            if tables is not None and owned is not None and taken is not None:
                names = [
                    name_of(self._target, tokens[0], rank, self._size) for rank in range(self._size)
                ]
                try:
                    self._write_index(content, about, own, owned, names, tables)
                except Exception as error:  # noqa: BLE001
                    problem = error
            problems = self._from_first(None if problem is None else (_kind(problem), str(problem)))
            if any(problems):
                file_path.unlink(missing_ok=True)
                self._raise(problems, problem)

    def _write_part(self, path: Path, taken: Flattened, held: ExitStack) -> _Stored:
        """Write this rank's file; it is held, so that nobody takes it for one left behind."""
        parts = {name: part for name, part in taken.parts.items() if part.ranges is not None}
        try:
            file = held.enter_context(path.open("x+b"))
            lock(file)
            tensors = {name: part.local for name, part in parts.items()}
            about = {"part": f"{self._rank} of {self._size}"}
            plain = {"dict": {name: {"tensor": name} for name in tensors}}
            where = write_to(file, plain, tensors, about, with_digests=True)
            file.flush()
            os.fsync(file.fileno())
            size = os.fstat(file.fileno()).st_size
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
        pieces = {
            name: (DTYPES[part.local.dtype], part.shape, ranges, *_place(where[name]))
            for name, part in parts.items()
            if (ranges := part.ranges) is not None
        }
        return _Stored(size, pieces)

    def _write_index(
        self,
        content: Mapping[str, Any],
        about: Mapping[str, str],
        own: Sequence[str],
        owned: Sequence[Mapping[str, Any]],
        names: Sequence[str],
        tables: Sequence[_Stored],
    ) -> None:
        for name, table in zip(names, tables, strict=True):
            found = self._target.with_name(name)
            if not found.exists() or found.stat().st_size != table.size:
                raise OSError(
                    f"{found} is not as its rank has written it: the folder must be one that all "
                    "ranks share"
                )
        every = {
            key: {OF_RANKS: [each.get(key) for each in owned]}
            if key in own and value is not None
            else value
            for key, value in content.items()
        }
        taken = Flattened(every)
        entries, places, digests = _tables(taken, tables)
        files = [[name, table.size] for name, table in zip(names, tables, strict=True)]
        metadata = {
            **about,
            FILES: json.dumps(files, separators=(",", ":")),
            SHARDED: json.dumps(entries, separators=(",", ":")),
        }
        tensors = {**taken.tensors, PLACES: places, DIGESTS: digests}
        before: list[str] = []
        with suppress(OSError, ValueError):
            before = file_names(metadata_of(self._target))
        with replacing(self._path) as file:
            write_to(file, taken.plain, tensors, metadata, INDEX_VERSION)
        remove_parts(self._target, names, before)

    def _all(self, value: Any) -> list[Any]:
        """Return what each rank has."""
        found: list[Any] = [None] * self._size
        with self._told():
            self._dist.all_gather_object(found, value, group=self._group)
        return found

    def _gathered(self, value: Any) -> list[Any] | None:
        """Return what each rank has, on the first one; None on others."""
        found: list[Any] | None = [None] * self._size if self._rank == 0 else None
        with self._told():
            self._dist.gather_object(value, found, dst=self._first, group=self._group)
        return found

    def _from_first(self, value: Any) -> list[Any]:
        found = [value]
        with self._told():
            self._dist.broadcast_object_list(found, src=self._first, group=self._group)
        return found

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Say what it means if other ranks can't be reached."""
        try:
            yield
        except RuntimeError as problem:
            raise RuntimeError(
                f"{self._path}: rank {self._rank} of {self._size} could not reach the others while "
                "a checkpoint was being saved, one of them may be gone. What is there now is a "
                f"whole checkpoint, this one or the one before: {problem}"
            ) from problem

    def _raise(self, problems: Sequence[tuple[str, str] | None], own: Exception | None) -> NoReturn:
        rank, (kind, text) = next((i, x) for i, x in enumerate(problems) if x is not None)
        raise _KINDS.get(kind, RuntimeError)(
            f"nothing was saved to {self._path}, what was there is as it was: rank {rank} of "
            f"{self._size}: {text}"
        ) from own


_KINDS: Mapping[str, type[Exception]] = {"TypeError": TypeError, "OSError": OSError}


def _kind(error: Exception) -> str:
    return next((name for name, kind in _KINDS.items() if isinstance(error, kind)), "")


def _tables(
    taken: Flattened, tables: Sequence[_Stored]
) -> tuple[dict[str, Sequence[Any]], Tensor, Tensor]:
    """Return what the index says of sharded tensors, and the rows of its two tables.

    Raises:
        RuntimeError: what ranks have stored does not make up the first one's tensors.
    """
    entries: dict[str, Sequence[Any]] = {}
    places: list[int] = []
    digests: list[bytes] = []
    for name, part in taken.parts.items():
        kind = (DTYPES[part.local.dtype], part.shape)
        first_place, first = len(places), len(digests)
        boxes = []
        for number, table in enumerate(tables):
            if name not in table.pieces:
                continue
            dtype, shape, ranges, start, digest = table.pieces[name]
            if (dtype, shape) != kind:
                raise RuntimeError(
                    f"{name!r} is {dtype} of shape {shape} on rank {number}, {kind[0]} of shape "
                    f"{kind[1]} on the first: ranks must save the same things"
                )
            boxes.append(ranges)
            lows, highs = zip(*ranges, strict=True) if ranges else ((), ())
            places += [number, start, *lows, *highs]
            digests.append(digest)
        problem = cover_problem(part.shape, boxes)
        if problem is not None:
            raise RuntimeError(
                f"what ranks have of {name!r}, of shape {part.shape}, are pieces that {problem}: "
                "ranks must save the same things"
            )
        entries[name] = [kind[0], part.shape, first_place, first, len(boxes)]
    rows = torch.tensor(places, dtype=torch.int64)
    return entries, rows, torch.tensor([*b"".join(digests)], dtype=torch.uint8)


def _place(stored: Stored) -> tuple[int, bytes]:
    return stored.start, stored.digest
