"""Kernels compiled by Numba, kept on disk as object code.

A kernel's source is its own key: the file is named by a digest of the text and of all that the
compiled code depends on (compiler versions, processor). What is stored is plain object code,
which llvmlite loads in milliseconds; Numba is imported only when something must be compiled.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import importlib.metadata
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from steprule.engines.notice import notice_if_slow
from steprule.engines.remembered import forget_shortcuts

# Raise when what kernels call (kernel_memory.py) changes meaning.
_FORMAT = "steprule-kernel-2"
_REORDERS_SUMS = "fastmath: reassoc contract nsz arcp"
_lock = threading.Lock()
# Code in use is never unloaded: a function outlives whoever asked for it.
_loaded: list[Any] = []

NativeFunction = Callable[..., int]


class CompilationError(RuntimeError):
    """A kernel could not be compiled."""


class Library:
    """Compiled functions over integers, which give their results through memory.

    Args:
        object_code: what was compiled.
        symbols: the functions' names in it, in the order of the source.
        arity: how many integers each takes.
        keeps_gil: for functions that read Python objects; others release the GIL while they run.
    """

    def __init__(
        self, object_code: bytes, symbols: list[str], arity: int, *, keeps_gil: bool
    ) -> None:
        self._engine = execution_engine(llvm.parse_assembly(""), object_code)
        _loaded.append(self)
        # Room for the result and the exception that a call might leave; neither is ever read.
        self._scratch = ctypes.create_string_buffer(32)
        result = ctypes.addressof(self._scratch)
        self.scratch = result
        self.addresses = [self._engine.get_function_address(symbol) for symbol in symbols]
        # Numba's own calling convention: result pointer, exception pointer, then the arguments.
        kinds = [ctypes.c_int32, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * arity]

        prototype = (ctypes.PYFUNCTYPE if keeps_gil else ctypes.CFUNCTYPE)(*kinds)
        self.functions: list[NativeFunction] = [
            functools.partial(prototype(address), result, result + 16) for address in self.addresses
        ]


@functools.cache
def _target_machine() -> Any:
    # llvmlite initialises itself from 0.45 on, and refuses to be told to.
    with contextlib.suppress(Exception):
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple()
    return target.create_target_machine(
        cpu=llvm.get_host_cpu_name(),
        features=llvm.get_host_cpu_features().flatten(),
        opt=3,
        reloc="pic",
        codemodel="jitdefault",
        jit=True,
    )


def execution_engine(module: Any, object_code: bytes | None = None) -> Any:
    """An engine with a module, and object code beside it, linked and ready to run."""
    _target_machine()
    # An execution engine takes ownership of its target machine: give each one of its own.
    machine = llvm.Target.from_default_triple().create_target_machine(jit=True)
    engine = llvm.create_mcjit_compiler(module, machine)
    if object_code is not None:
        engine.add_object_file(llvm.ObjectFileRef.from_data(object_code))
    engine.finalize_object()
    return engine


@functools.cache
def can_convert_half() -> bool:
    """Whether this processor converts float16 itself (else LLVM calls a library we may lack)."""
    features = llvm.get_host_cpu_features()
    return bool(features.get("f16c", False) or features.get("fullfp16", False) or _is_arm64())


def _is_arm64() -> bool:
    return str(llvm.get_process_triple()).startswith(("aarch64", "arm64"))


def cache_folder() -> Path:
    """Where kernels are kept: STEPRULE_CACHE_DIR, else NUMBA_CACHE_DIR, else the user's cache."""
    for variable in ("STEPRULE_CACHE_DIR", "NUMBA_CACHE_DIR"):
        if os.environ.get(variable):
            return Path(os.environ[variable]) / "steprule"
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library" / "Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "steprule"


def digest_of(source: str) -> str:
    """The name of a kernel's files."""
    parts = [
        _FORMAT,
        *(f"{name} {importlib.metadata.version(name)}" for name in ("numba", "llvmlite")),
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
    """The functions ``names`` of this source: from memory, from disk, or compiled now.

    ``reorders_sums`` lets a sum be taken in several parts at once (else it could not be
    vectorized); nan and infinity keep their meaning. ``title`` is how people are told what is
    being compiled, if it takes long.
    """
    if reorders_sums:
        source = f"# {_REORDERS_SUMS}\n{source}"
    kept = _kept.get()
    if kept is not None:
        kept.append(_keep(source, names, arity))
    return _library(source, names, arity, keeps_gil, title)


@functools.cache
def _library(
    source: str, names: tuple[str, ...], arity: int, keeps_gil: bool, title: str
) -> Library:
    with _lock:
        object_code, symbols = _load_or_compile(source, names, arity, title)
    return Library(object_code, symbols, arity, keeps_gil=keeps_gil)


def _load_or_compile(
    source: str, names: tuple[str, ...], arity: int, title: str
) -> tuple[bytes, list[str]]:
    try:
        digest = digest_of(source)
        path = _path_of(digest)
    except (RuntimeError, OSError):  # no home folder: nothing can be kept
        with notice_if_slow(title, None):
            return _compiled(source, names, arity)
    stored = _read(path, digest)
    if stored is None:
        with notice_if_slow(title, path.parent):
            stored = _compiled(source, names, arity)
        with contextlib.suppress(OSError):  # costs time later, nothing else
            _write(path, digest, source, *stored)
    return stored


def _compiled(source: str, names: tuple[str, ...], arity: int) -> tuple[bytes, list[str]]:
    try:
        return _compile(source, names, arity)
    except Exception as error:
        message = f"its kernel could not be compiled ({type(error).__name__}: {error})"
        raise CompilationError(message.split("\n")[0]) from error


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
    forget_shortcuts()
    kept: list[Kept] = []
    token = _kept.set(kept)
    try:
        yield kept
    finally:
        _kept.reset(token)


def _keep(source: str, names: tuple[str, ...], arity: int) -> Kept:
    digest = digest_of(source)
    path = _path_of(digest)
    with _lock:
        if _read(path, digest) is not None:
            return Kept(path, was_compiled=False)
        _write(path, digest, source, *_compiled(source, names, arity))
    return Kept(path, was_compiled=True)


def is_kept(source: str) -> bool:
    """Whether this kernel is on disk: to be had in milliseconds."""
    try:
        return _path_of(digest_of(source)).exists()
    except (RuntimeError, OSError):
        return False


def _path_of(digest: str) -> Path:
    return cache_folder() / f"{digest[:32]}.kernel"


def _compile(source: str, names: tuple[str, ...], arity: int) -> tuple[bytes, list[str]]:
    import numba

    from steprule.engines.kernel_memory import kernel_namespace

    # It logs every instruction that it looks at, for whoever logs at level DEBUG.
    logging.getLogger("numba").setLevel(max(logging.WARNING, logging.getLogger("numba").level))
    namespace = kernel_namespace()
    known = {*namespace, "__builtins__"}
    exec(compile(source, "<steprule kernel>", "exec"), namespace)
    signature = numba.int64(*[numba.int64] * arity)
    # On the source's first line, so that it is part of what the kernel is named by.
    relaxed = set(_REORDERS_SUMS.split()[1:]) if source.startswith(f"# {_REORDERS_SUMS}") else set()
    compiler: Any = numba.njit  # its published types lack the options for bare functions
    options = {
        "error_model": "numpy",  # a division that checks for zero cannot be vectorized
        "fastmath": relaxed,
        "no_cpython_wrapper": True,
        "no_cfunc_wrapper": True,
    }
    modules, symbols = [], []
    # NUMBA_DISABLE_JIT is for debugging the user's functions; ours could not be called at all.
    config: Any = numba.config
    disabled, config.DISABLE_JIT = config.DISABLE_JIT, 0
    try:
        for name in set(namespace) - known - set(names):  # what the functions call
            namespace[name] = compiler(**options)(namespace[name])
        for name in names:
            dispatcher = compiler(signature, **options)(namespace[name])
            compiled = next(iter(dispatcher.overloads.values()))
            modules.append(llvm.parse_assembly(compiled.library.get_llvm_str()))
            symbols.append(compiled.fndesc.llvm_func_name)
    finally:
        config.DISABLE_JIT = disabled
    for module in modules[1:]:
        modules[0].link_in(module)
    return _target_machine().emit_object(modules[0]), symbols


def _read(path: Path, digest: str) -> tuple[bytes, list[str]] | None:
    """What is stored at ``path``, unless it is missing, damaged or someone else's."""
    try:
        if hasattr(os, "getuid") and path.stat().st_uid not in (os.getuid(), 0):
            return None  # object code is run: never take it from a stranger
        stored_digest, checksum, symbols, code = path.read_bytes().split(b"\n", 3)
    except (OSError, ValueError):
        return None
    body = symbols + b"\n" + code
    is_whole = hashlib.sha256(body).hexdigest().encode() == checksum
    if stored_digest != digest.encode() or not is_whole:
        return None
    return code, symbols.decode().split(" ")


def _write(path: Path, digest: str, source: str, code: bytes, symbols: list[str]) -> None:
    """Store a kernel, and its source beside it for people."""
    body = " ".join(symbols).encode() + b"\n" + code
    checksum = hashlib.sha256(body).hexdigest().encode()
    # Others may read it (a container's image is built by root and run by someone else).
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
    _replace(path, b"\n".join([digest.encode(), checksum, body]))
    _replace(path.with_suffix(".py"), source.encode())


def _replace(path: Path, content: bytes) -> None:
    """Write a whole file or nothing: another process may be reading or writing the same one."""
    handle, name = tempfile.mkstemp(dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        temporary.chmod(0o644)  # mkstemp's own is 0600
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
