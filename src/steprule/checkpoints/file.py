"""The file itself: safetensors, with what is not a tensor as JSON, and a digest of every byte.

The header's metadata has ``content`` (:mod:`steprule.checkpoints.nested`), ``steprule`` (the
version of the format), ``made_by``, and ``sha256``: that of the whole file with 64 zeros in its own
place. Any reader of safetensors can read the tensors. It is written here and not by that library,
whose writer copies all tensors of a device at once and leaves nameless files where it is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from steprule.checkpoints.errors import CheckpointError
from steprule.checkpoints.nested import DTYPES, Flattened, Rebuilder
from steprule.checkpoints.replacing import replacing
from steprule.checkpoints.shard_files import ShardFiles
from steprule.checkpoints.shard_names import remove_parts

#: Raise when a file of this version could not be read by the one before.
VERSION = 1
#: Of a file that names others, in which ranks have stored their parts.
INDEX_VERSION = 2
# What safetensors itself admits.
_LONGEST_HEADER = 100_000_000
_AT_ONCE = 1 << 24
_UNSIGNED = "0" * 64


def write(path: str | os.PathLike[str], content: Any, about: Mapping[str, str]) -> None:
    """Write a nested value to a file, or leave the file as it is.

    Tensors are written one after the other: beyond them, at most one is in memory.

    Args:
        path: the file.
        content: what :class:`Flattened` takes.
        about: metadata for people, such as the optimizer's name.

    Raises:
        TypeError: something that a checkpoint can't hold, named by its place; or no path.
        OSError: the file can't be written.
    """
    file_path = path_of(path)
    taken = Flattened(content)
    with replacing(file_path) as file:
        write_to(file, taken.plain, taken.tensors, about)
    remove_parts(Path(os.path.realpath(file_path)), kept=())


@dataclass(frozen=True)
class Stored:
    """Where a tensor is in a file.

    Attributes:
        start: its first byte.
        digest: SHA-256 of its bytes; empty where nobody asked for it.
    """

    start: int
    digest: bytes


def write_to(
    file: IO[bytes],
    plain: Any,
    tensors: Mapping[str, Tensor],
    about: Mapping[str, str],
    version: int = VERSION,
    *,
    with_digests: bool = False,
) -> Mapping[str, Stored]:
    """Write a value that was taken apart to a new file.

    Args:
        file: open for writing, empty.
        plain: what :class:`Flattened` has made of the value.
        tensors: likewise.
        about: metadata.
        version: of the format.
        with_digests: whether to make a digest of each tensor as well.

    Returns:
        Where each tensor is.

    Raises:
        TypeError: there is more beside tensors than such a file holds.
        OSError: it can't be written.
    """
    # In an order in which each is aligned, as the format asks for.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    metadata = {
        "format": "pt",
        "made_by": f"steprule {sys.modules['steprule'].__version__}, torch {torch.__version__}",
        **about,
        "steprule": str(version),
        "content": json.dumps(plain, allow_nan=False, separators=(",", ":")),
        "sha256": _UNSIGNED,
    }
    header = _header(metadata, {name: tensors[name] for name in names})
    if len(header) > _LONGEST_HEADER:
        raise TypeError(
            f"what is to be saved beside tensors takes {len(header)} bytes as JSON, safetensors "
            f"holds {_LONGEST_HEADER}: make tensors of long lists"
        )
    digest = hashlib.sha256()
    start = struct.pack("<Q", len(header)) + header
    file.write(start)
    digest.update(start)
    end = len(start)
    stored = {}
    for name in names:
        first, own = end, hashlib.sha256()
        for piece in _pieces(tensors[name]):
            file.write(piece)
            digest.update(piece)
            end += len(piece)
            if with_digests:
                own.update(piece)
        stored[name] = Stored(first, own.digest() if with_digests else b"")
    file.seek(8 + _place_of_digest(header, _UNSIGNED))
    file.write(digest.hexdigest().encode())
    return stored


def path_of(path: Any) -> Path:
    """Return a path as such.

    Raises:
        TypeError: it is none.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a string or a path, got {path!r:.80}")
    return Path(path)


def _header(metadata: Mapping[str, str], tensors: Mapping[str, Tensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": metadata}
    start = 0
    for name, tensor in tensors.items():
        end = start + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)


def _pieces(tensor: Tensor) -> Iterator[memoryview]:
    """Give a tensor's bytes, in the order of its elements."""
    plain = tensor.resolve_neg().cpu().contiguous().reshape(-1).view(torch.uint8)
    data = memoryview(plain.numpy())  # type: ignore[arg-type]
    for start in range(0, len(data), _AT_ONCE):
        yield data[start : start + _AT_ONCE]


def _place_of_digest(header: bytes, digest: str) -> int:
    """Return where the digest stands; quotes within the content are escaped, so that it is alone.

    Raises:
        CheckpointError: nowhere, or in two places.
    """
    key = b'"sha256":"'
    entry = key + digest.encode() + b'"'
    if header.count(entry) != 1:
        raise CheckpointError("its header has no place for a digest")
    return header.index(entry) + len(key)


@dataclass(frozen=True)
class Checkpoint:
    """An open file that has been found whole.

    Attributes:
        metadata: what its header says.
        content: the nested value. Its tensors are in the file's own memory: they must be copied
            to outlive it.
    """

    metadata: Mapping[str, str]
    content: Any


@contextmanager
def opened(path: str | os.PathLike[str]) -> Iterator[Checkpoint]:
    """Open a file that :func:`write` has made, mapped into memory.

    Raises:
        CheckpointError: it is something else, of a later version, truncated, or has a bit that is
            not as it was written.
        OSError: it can't be read.
    """
    with path_of(path).open("rb") as file:
        found = _verified(file, path)
        try:
            with safe_open(_name_of(file, path), framework="pt", device="cpu") as tensors:
                # By its name it may have become another one since: not of this digest then.
                if tensors.metadata() != found:
                    raise CheckpointError(f"{path} was replaced while it was read: load it again")
                names = set(tensors.keys())

                def tensor_named(name: str) -> Tensor:
                    if name not in names:
                        raise CheckpointError(f"{path}: the tensor {name!r} is missing")
                    tensor: Tensor = tensors.get_tensor(name)
                    return tensor

                try:
                    files = ShardFiles(path_of(path), found, tensor_named)
                    plain = _parsed(found["content"])
                    content = Rebuilder(tensor_named, files.tensor_named).value(plain)
                except CheckpointError as problem:
                    raise CheckpointError(f"{path} is damaged: {problem}") from None
                yield Checkpoint(found, content)
        except SafetensorError as problem:
            raise CheckpointError(f"{path} is damaged: {problem}") from problem


def _name_of(file: IO[bytes], path: str | os.PathLike[str]) -> str:
    """Return a name of an open file: of the very one, where the system has such names."""
    name = f"/proc/self/fd/{file.fileno()}"
    return name if Path(name).exists() else os.fspath(path)


def _verified(file: IO[bytes], path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Return a file's metadata, all its bytes having been looked at."""
    start, header = _header_in(file, path)
    metadata = _metadata_in(header, path)
    _check_version(metadata, path)
    written = metadata.get("sha256", "")
    try:
        place = _place_of_digest(header, written)
    except CheckpointError as problem:
        raise CheckpointError(f"{path} is damaged: {problem}") from None
    digest = hashlib.sha256(start)
    digest.update(header[:place] + _UNSIGNED.encode() + header[place + len(_UNSIGNED) :])
    _add_rest(digest, file)
    if digest.hexdigest() != written:
        raise CheckpointError(
            f"{path} is damaged: its digest is another than when it was written. It was cut short, "
            "or bits of it have changed: take another copy"
        )
    return metadata


def metadata_of(path: str | os.PathLike[str]) -> Mapping[str, str]:
    """Return what a file's header says, which may be damaged.

    Raises:
        CheckpointError: nothing.
        OSError: it can't be read.
    """
    with path_of(path).open("rb") as file:
        return _metadata_in(_header_in(file, path)[1], path)


def _header_in(file: IO[bytes], path: str | os.PathLike[str]) -> tuple[bytes, bytes]:
    """Return the header's length as it stands there, and the header."""
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else _LONGEST_HEADER + 1
    if length > _LONGEST_HEADER:
        raise CheckpointError(f"{path} is no safetensors file: it has no header")
    return start, file.read(length)


def _metadata_in(header: bytes, path: str | os.PathLike[str]) -> Mapping[str, str]:
    entries = _parsed(header)
    metadata = entries.get("__metadata__") if isinstance(entries, dict) else None
    if not isinstance(metadata, dict) or not all(type(x) is str for x in metadata.values()):
        raise CheckpointError(
            f"{path} is damaged, or no checkpoint of steprule: its header can't be read"
        )
    return metadata


def _check_version(metadata: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    version = metadata.get("steprule")
    if version is None or "content" not in metadata:
        raise CheckpointError(
            f"{path} is a safetensors file, but no checkpoint of steprule: read its tensors with "
            "safetensors.torch.load_file"
        )
    if version not in (str(VERSION), str(INDEX_VERSION)):
        raise CheckpointError(
            f"{path} is a checkpoint of format {version[:20]}, this steprule reads formats to "
            f"{INDEX_VERSION} (it was made by {metadata.get('made_by', 'an unknown version')[:80]})"
        )


def _add_rest(digest: Any, file: IO[bytes]) -> None:
    buffer = bytearray(1 << 20)
    view = memoryview(buffer)
    while count := file.readinto(buffer):  # type: ignore[attr-defined]
        digest.update(view[:count])


def _parsed(text: bytes | str) -> Any:
    """Return what JSON says; an empty object, which stands for nothing here, if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}
