"""The folder where compiled kernels are kept."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from steprule.doctor.finding import Finding, note, problem
from steprule.engines.kernel_cache.folder import (
    KernelFolder,
    UntrustedFolderError,
    kernel_folder,
)

SECTION = "kernels on disk"
_VARIABLE = "STEPRULE_CACHE_DIR"
_ELSEWHERE = "set STEPRULE_CACHE_DIR to a folder of your own"
_AT_EVERY_START = "kernels are compiled at every start"


def cache() -> Iterator[Finding]:
    """Yield where kernels are kept, whether that works, and what is there."""
    try:
        folder = kernel_folder()
    except RuntimeError as error:  # no home
        yield note(SECTION, "folder", f"none ({error})", f"{_AT_EVERY_START}: {_ELSEWHERE}")
        return
    yield Finding(SECTION, "folder", str(folder.path))
    trouble = _trouble(folder)
    if trouble is not None:
        yield trouble
        return
    names = kernels_in(folder.path)
    yield Finding(SECTION, "kernels", f"{len(names)}, {_megabytes(folder.path, names):.1f} MB")
    unread = [name for name in names if folder.read(name) is None]
    if unread:
        yield note(
            SECTION,
            "not taken",
            f"{len(unread)} files: links, another user's, or others can write to them",
            f"delete them (the first is {unread[0]}); what is needed is compiled anew",
        )
    yield _writing(folder, len(names))


def _trouble(folder: KernelFolder) -> Finding | None:
    """Return what is wrong with the folder itself; None if it may be used."""
    try:
        folder.check()
    except UntrustedFolderError as error:
        return problem(
            SECTION,
            "trust",
            f"not used: {error.strerror} ({error.filename})",
            f"{_AT_EVERY_START}; {_ELSEWHERE} that others cannot write to",
        )
    except OSError as error:
        return _useless(folder, "trust", f"not used: {_reason(error)}")
    return None


def _useless(folder: KernelFolder, name: str, value: str) -> Finding:
    """Return that the folder is of no use: broken if it was asked for, else a matter of time."""
    if folder.is_named:
        return problem(
            SECTION,
            name,
            value,
            f"{_AT_EVERY_START}: set {_VARIABLE} to another folder, or unset it",
        )
    return note(SECTION, name, value, f"{_AT_EVERY_START}: {_ELSEWHERE}")


def _reason(error: OSError) -> str:
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}"


def _writing(folder: KernelFolder, kernels: int) -> Finding:
    """Return whether files can be written there, by writing one."""
    name = f"doctor-{os.getpid()}"
    try:
        folder.write(name, b"")
    except OSError as error:
        value = f"no: {_reason(error)}"
        if kernels:  # an image's, as it should be
            return note(
                SECTION,
                "writable",
                value,
                "what is there is used; what is not is compiled anew"
                " at every start (`steprule warm` makes it beforehand: docs/installing.md)",
            )
        return _useless(folder, "writable", value)
    with contextlib.suppress(OSError):
        (folder.path / name).unlink()
    return Finding(SECTION, "writable", "yes")


def kernels_in(folder: Path) -> list[str]:
    """Return the names of the kernels' files in a folder; none if there is no such folder."""
    with contextlib.suppress(OSError):
        return sorted(file.name for file in folder.iterdir() if file.suffix == ".kernel")
    return []


def _megabytes(folder: Path, names: list[str]) -> float:
    total = 0
    for name in names:
        with contextlib.suppress(OSError):  # another process has just replaced it
            total += (folder / name).stat().st_size
    return total / 2**20
