"""Compiled kernels, kept on disk as object code.

A kernel's source is its own key: the file is named by a digest of the text and of all that the
compiled code depends on (the compiler, the processor). What is stored is plain object code, which
is loaded in milliseconds; the compiler is imported only when something must be compiled.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from steprule.engines import compiler
from steprule.engines.compiler.lock import compiler_lock
from steprule.engines.kernel_cache.cached_lookup import clear_cached_lookups
from steprule.engines.kernel_cache.folder import KernelFolder, trusted_folder, usable_folder
from steprule.engines.kernel_cache.slow_compile import announce_if_slow

# Raise when the files, or how compiled functions are called, change meaning.
_FORMAT = "steprule-kernel-3"
_REORDERS_SUMS = "reorders sums"
# Code in use is never unloaded: a function outlives whoever asked for it.
_loaded: list[Any] = []

NativeFunction = Callable[..., int]


class CompilationError(RuntimeError):
    """A kernel could not be compiled."""


class Library:
    """Compiled functions over integers, which give their results through memory.

    Args:
        object_code: what was compiled.
        names: the functions in it.
        arity: how many integers each takes.
        keeps_gil: for functions that read Python objects; others release the GIL while they run.
    """

    def __init__(
        self, object_code: bytes, names: tuple[str, ...], arity: int, *, keeps_gil: bool
    ) -> None:
        self._engine = compiler.execution_engine(object_code)
        _loaded.append(self)
        self.addresses = [
            self._engine.get_function_address(compiler.symbol_of(name)) for name in names
        ]
        prototype = (ctypes.PYFUNCTYPE if keeps_gil else ctypes.CFUNCTYPE)(
            *[ctypes.c_int64] * (1 + arity)
        )
        self.functions: list[NativeFunction] = [prototype(address) for address in self.addresses]


def digest_of(source: str) -> str:
    """Return the name of a kernel's files."""
    with compiler_lock:
        parts = [
            _FORMAT,
            f"llvmlite {importlib.metadata.version('llvmlite')}",
            compiler.digest(),
            llvm.get_process_triple(),
            llvm.get_host_cpu_name(),
            llvm.get_host_cpu_features().flatten(),
            source,
        ]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def library_for(
    source: str,
    names: tuple[str, ...],
    arity: int,
    *,
    keeps_gil: bool = False,
    reorders_sums: bool = False,
    title: str = "a kernel",
) -> Library:
    """Return the functions ``names`` of this source: from memory, from disk, or compiled now.

    ``reorders_sums`` lets a sum be taken in several parts at once (else it could not be
    vectorized); nan and infinity keep their meaning. ``title`` is how people are told what is
    being compiled, if it takes long.
    """
    if reorders_sums:
        source = f"# {_REORDERS_SUMS}\n{source}"
    if _kept.get() is not None:
        kept_code(digest_of(source), source, lambda: _compiled(source, names), title)
    return _library(source, names, arity, keeps_gil, title)


@functools.cache
def _library(
    source: str, names: tuple[str, ...], arity: int, keeps_gil: bool, title: str
) -> Library:
    with compiler_lock:
        object_code = _load_or_compile(source, names, title)
        return Library(object_code, names, arity, keeps_gil=keeps_gil)


def _load_or_compile(source: str, names: tuple[str, ...], title: str) -> bytes:
    try:
        digest = digest_of(source)
    except (RuntimeError, OSError):  # the compiler can't be told from others
        with announce_if_slow(title, None):
            return _compiled(source, names)
    return _code(digest, source, lambda: _compiled(source, names), title)


def kept_code(digest: str, source: str, make: Callable[[], bytes], title: str) -> bytes:
    """Return a kernel's code: from disk, or made now and kept there.

    Args:
        digest: what names it: of all that the code depends on.
        source: its text, which lies beside it for people.
        make: compiles it.
        title: how people are told what is being compiled, if it takes long.
    """
    kept = _kept.get()
    if kept is not None:
        with compiler_lock:
            kept.append(_keep(digest, source, make))
    with compiler_lock:
        return _code(digest, source, make, title)


def _code(digest: str, source: str, make: Callable[[], bytes], title: str) -> bytes:
    folder = usable_folder()
    stored = None if folder is None else _read(folder, digest)
    if stored is None:
        with announce_if_slow(title, None if folder is None else folder.path):
            stored = make()
        if folder is not None:
            with contextlib.suppress(OSError):  # costs time later, nothing else
                _write(folder, digest, source, stored)
    return stored


def _compiled(source: str, names: tuple[str, ...]) -> bytes:
    try:
        return _compile(source, names)
    except Exception as error:
        message = f"its kernel could not be compiled ({type(error).__name__}: {error})"
        raise CompilationError(message.split("\n")[0]) from error


def _compile(source: str, names: tuple[str, ...]) -> bytes:
    # On the source's first line, so that it is part of what the kernel is named by.
    reorders_sums = source.startswith(f"# {_REORDERS_SUMS}\n")
    return compiler.compile_kernels(source, names, reorders_sums=reorders_sums)


@dataclass(frozen=True)
class Kept:
    """What is on disk now, and whether it had to be compiled to be there."""

    path: Path
    was_compiled: bool


_kept: ContextVar[list[Kept] | None] = ContextVar("_kept", default=None)


@contextlib.contextmanager
def keeping() -> Iterator[list[Kept]]:
    """See to it that every kernel asked for inside, by this thread, is on disk afterwards.

    Yields:
        What was asked for, as it comes.

    Raises:
        OSError, RuntimeError: (inside) there is no folder, or it cannot be written to.
    """
    clear_cached_lookups()
    kept: list[Kept] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def _keep(digest: str, source: str, make: Callable[[], bytes]) -> Kept:
    folder = trusted_folder()
    path = folder.path / _file_of(digest)
    if _read(folder, digest) is not None:
        return Kept(path, was_compiled=False)
    _write(folder, digest, source, make())
    return Kept(path, was_compiled=True)


def is_kept(source: str) -> bool:
    """Tell whether this kernel is on disk: to be had in milliseconds."""
    try:
        return (trusted_folder().path / _file_of(digest_of(source))).exists()
    except (RuntimeError, OSError):
        return False


def _file_of(digest: str) -> str:
    return f"{digest[:32]}.kernel"


def _read(folder: KernelFolder, digest: str) -> bytes | None:
    """Return the code stored there, unless it is missing, damaged or not to be trusted."""
    try:
        stored_digest, checksum, code = (folder.read(_file_of(digest)) or b"").split(b"\n", 2)
    except ValueError:
        return None
    is_whole = hashlib.sha256(code).hexdigest().encode() == checksum
    return code if is_whole and stored_digest == digest.encode() else None


def _write(folder: KernelFolder, digest: str, source: str, code: bytes) -> None:
    """Store a kernel, and its source beside it for people."""
    checksum = hashlib.sha256(code).hexdigest().encode()
    name = _file_of(digest)
    folder.write(name, b"\n".join([digest.encode(), checksum, code]))
    folder.write(str(Path(name).with_suffix(".py")), source.encode())
