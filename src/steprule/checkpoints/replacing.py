"""A file replaced as a whole: whoever looks finds the old one or the new one, even after a kill."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SUFFIX, _DIGITS = ".partial", 12
# Of a name, so that with what is added it is none that is too long.
_LONGEST_STEM = 100
#: Seconds in which a writer that has just begun may not have its lock yet.
YOUNG = 60.0


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Give a new file to write to, which takes the place of ``path`` at the end.

    It is written beside it under another name, flushed to the disk, and renamed, and the folder is
    flushed. If anything raises, it is removed and ``path`` is as it was. What earlier writers left
    that were killed is removed first. A symbolic link is followed; the mode of a file that was
    there stays.

    Raises:
        OSError: as ``open`` does, or of a full disk; or ``path`` is there and no regular file.
    """
    target = Path(os.path.realpath(path))
    mode = _mode_of(target, path)
    stem = f".{target.name[:_LONGEST_STEM]}."
    _remove_left_over(target.parent, stem)
    partial = target.with_name(f"{stem}{secrets.token_hex(_DIGITS // 2)}{_SUFFIX}")
    try:
        with partial.open("x+b") as file:
            lock(file)
            if mode is not None:
                with contextlib.suppress(OSError):  # a file system that has no modes
                    partial.chmod(mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
        # Not before the file is there as a whole: a rename may reach the disk first.
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    flush_folder(target.parent)


def _mode_of(target: Path, path: Path) -> int | None:
    """Return the mode of the file that is there; None if there is none."""
    try:
        found = target.stat().st_mode
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found):
        raise IsADirectoryError(errno.EISDIR, "is a folder: give the name of a file", str(path))
    if not stat.S_ISREG(found):
        raise OSError(errno.EINVAL, "is no regular file, which could be replaced", str(path))
    return stat.S_IMODE(found)


def _remove_left_over(folder: Path, stem: str) -> None:
    """Remove what writers of the same file left: those are gone, if nobody holds its lock.

    One that has just begun may not have its lock yet: what was written to in the last minute stays.
    """
    if fcntl is None:
        return
    known = re.compile(re.escape(stem) + rf"[0-9a-f]{{{_DIGITS}}}" + re.escape(_SUFFIX))
    for left in folder.iterdir():
        if known.fullmatch(left.name):
            with contextlib.suppress(OSError), left.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - left.stat().st_mtime > YOUNG:
                    left.unlink()


def lock(file: IO[bytes]) -> None:
    """Have others know that a file is being written, until it is closed."""
    if fcntl is not None:
        with contextlib.suppress(OSError):  # a file system that has no locks
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_in_use(path: Path) -> bool:
    """Tell whether a file is being written, or nobody can tell."""
    if fcntl is None:
        return True
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


def flush_folder(folder: Path) -> None:
    """Have the rename itself on the disk."""
    with contextlib.suppress(OSError):  # Windows can't, nor do all file systems
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
