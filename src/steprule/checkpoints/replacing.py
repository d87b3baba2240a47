"""A file replaced as a whole: whoever looks finds the old one or the new one, even after a kill."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SUFFIX = ".partial"


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a new file to write to, which takes the place of ``path`` at the end.

    It is written beside it under another name, flushed to the disk, and renamed, and the folder is
    flushed. If anything raises, it is removed and ``path`` is as it was. What earlier writers left
    that were killed is removed first. A symbolic link is followed.

    Raises:
        OSError: as ``open`` does, or of a full disk.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    _remove_left_over(target)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(6)}{_SUFFIX}")
    with partial.open("x+b") as file:
        try:
            _lock(file)
            yield file
            file.flush()
            os.fsync(file.fileno())
            # Not before the file is there as a whole: a rename may reach the disk first.
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    _flush_folder(target.parent)


def _remove_left_over(target: Path) -> None:
    """Remove what writers of the same file left: those are gone, if nobody holds its lock."""
    if fcntl is None:
        return
    for left in target.parent.glob(f".{_escaped(target.name)}.*{_SUFFIX}"):
        with contextlib.suppress(OSError), left.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


def _escaped(name: str) -> str:
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _lock(file: IO[bytes]) -> None:
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _flush_folder(folder: Path) -> None:
    """Have the rename itself on the disk."""
    with contextlib.suppress(OSError):  # Windows can't, nor do all file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
