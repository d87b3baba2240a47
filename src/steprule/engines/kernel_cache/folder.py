"""Where kernels are kept on disk, and whether what lies there may be run.

Object code is run as it is found, so the folder must be one that nobody else can write to. The
user's own cache is private (0700). A folder that the environment names may be read by all, for a
container's image is built by root and run by someone else; what root has put there is taken then.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import sys
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

_HAS_OWNERS = hasattr(os, "getuid")
_has_warned = False


class UntrustedFolderError(PermissionError):
    """Others can write to the folder, or it is theirs: what lies there must not be run."""


@dataclass(frozen=True)
class KernelFolder:
    """A folder for kernels.

    Attributes:
        path: where it is, or would be.
        is_named: whether the user named it, so that others may read it.
    """

    path: Path
    is_named: bool

    def check(self) -> None:
        """See to it that nobody else can put files there; there need not be such a folder.

        Raises:
            UntrustedFolderError: somebody can.
            OSError: it cannot be looked at.
        """
        if not _HAS_OWNERS:
            return
        # Who can write beside a folder can put another one in its place, unless only owners may.
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            above = self.path.parent.stat()
            if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
                self._refuse(self.path.parent, "every user can write to it")
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            link, found = self.path.lstat(), self.path.stat()
            for status in (link, found):
                if not self._is_owner_trusted(status):
                    self._refuse(self.path, f"it belongs to another user (uid {status.st_uid})")
            if found.st_mode & stat.S_IWOTH:
                self._refuse(self.path, "every user can write to it")
            if not self.is_named and found.st_mode & 0o077 and stat.S_ISDIR(found.st_mode):
                with contextlib.suppress(OSError):  # made by an older version
                    self.path.chmod(0o700)

    def read(self, name: str) -> bytes | None:
        """Return a file's content, unless there is none, or another user can write to it."""
        flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
        # No link to what lies elsewhere, and no pipe that would be waited for.
        flags |= getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        try:
            with os.fdopen(os.open(self.path / name, flags), "rb") as file:
                status = os.fstat(file.fileno())
                is_safe = stat.S_ISREG(status.st_mode) and (
                    not _HAS_OWNERS
                    or (self._is_owner_trusted(status) and not status.st_mode & 0o022)
                )
                return file.read() if is_safe else None
        except OSError:
            return None

    def write(self, name: str, content: bytes) -> None:
        """Write a whole file or nothing: another process may be reading or writing the same one.

        Raises:
            OSError: it cannot be written.
        """
        self._make()
        handle, temporary = tempfile.mkstemp(dir=self.path)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            # mkstemp's own mode is 0600
            Path(temporary).chmod(0o644 if self.is_named else 0o600)
            Path(temporary).replace(self.path / name)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise

    def _make(self) -> None:
        """Make the folder, and those above it: whatever the umask, not for others to write to."""
        missing = [folder for folder in self.path.parents if not folder.exists()]
        for folder in reversed(missing):
            folder.mkdir(mode=0o755, exist_ok=True)
        self.path.mkdir(mode=0o755 if self.is_named else 0o700, exist_ok=True)

    def _is_owner_trusted(self, status: os.stat_result) -> bool:
        return status.st_uid == os.getuid() or (self.is_named and status.st_uid == 0)

    def _refuse(self, path: Path, reason: str) -> None:
        raise UntrustedFolderError(errno.EPERM, reason, str(path))


def kernel_folder() -> KernelFolder:
    """Return where kernels are kept: STEPRULE_CACHE_DIR, NUMBA_CACHE_DIR or the user's cache.

    Raises:
        RuntimeError: the user has no home.
    """
    # Whoever set Numba's has said where a container may keep what is compiled.
    for variable in ("STEPRULE_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            return KernelFolder(Path(os.environ[variable]) / "steprule", is_named=True)
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return KernelFolder(Path(base) / "steprule", is_named=False)


def trusted_folder() -> KernelFolder:
    """Return the folder if what lies there may be run.

    Raises:
        UntrustedFolderError: it may not.
        OSError, RuntimeError: there is none, or none that can be looked at.
    """
    folder = kernel_folder()
    folder.check()
    return folder


def usable_folder() -> KernelFolder | None:
    """Return the folder, or None where kernels are to be kept in memory alone.

    Who can write to a folder that is not trusted can have us run anything: that is said, once.
    """
    global _has_warned
    try:
        return trusted_folder()
    except UntrustedFolderError as error:
        if not _has_warned:
            _has_warned = True
            warnings.warn(
                f"steprule takes no kernels from {error.filename}, and keeps none there: "
                f"{error.strerror}, and kernels are run as they are found. They are compiled in "
                "memory instead, at every start: set STEPRULE_CACHE_DIR to a folder that belongs "
                "to you and that others cannot write to",
                RuntimeWarning,
                stacklevel=2,
            )
    except (OSError, RuntimeError):  # it costs time, nothing else
        pass
    return None
