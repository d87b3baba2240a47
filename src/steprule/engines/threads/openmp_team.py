"""Running a kernel on torch's own OpenMP threads.

Between two of its parallel regions torch's threads spin for a while, so as to be there at once for
the next one. Threads of our own would share their cores with them and come late; a region of ours
on the same OpenMP runtime finds them awake. Where that runtime is not found (or after a fork,
which its threads do not survive) :mod:`steprule.engines.threads.thread_pool` does the work instead.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernel_cache.cached_lookup import cached_lookup

# What each thread of the team runs: its shares of the chunks, by the kernel's `update`.
# task: update, the control block, number of shares, first chunk of each share (and, behind them,
# the end of the last), omp_get_thread_num, omp_get_num_threads. Those two give 32 bits.
_SOURCE = f"""\
def team(task):
    update = load_int64(task, 0)
    control = load_int64(task, 1)
    shares = load_int64(task, 2)
    edges = load_int64(task, 3)
    share = call_native(load_int64(task, 4), 0, 0, 0, 0, 0) & {0xFFFFFFFF}
    threads = call_native(load_int64(task, 5), 0, 0, 0, 0, 0) & {0xFFFFFFFF}
    while share < shares:
        first = load_int64(edges, share)
        call_native(update, control, first, load_int64(edges, share + 1), 0, 0)
        share += threads
    return 0
"""


@cached_lookup
def native() -> Library:
    """Return what a thread of a team runs."""
    return library_for(_SOURCE, ("team",), arity=1, title="the loop over a thread's share")


class OpenMPTeam:
    """torch's OpenMP runtime: a function that runs a task on so many of its threads."""

    def __init__(self, runtime: Any) -> None:
        address = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value or 0
        kinds = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.region = address
        self._region = ctypes.CFUNCTYPE(None, *kinds)(address)
        self.queries = [
            ctypes.cast(function, ctypes.c_void_p).value or 0
            for function in (runtime.omp_get_thread_num, runtime.omp_get_num_threads)
        ]
        (self.entry,) = native().addresses

    def run(self, task_address: int, threads: int) -> None:
        """Run a task (laid out as above) to its end; the caller's thread takes part."""
        self._region(self.entry, task_address, threads, 0)


@functools.cache
def openmp_team() -> OpenMPTeam | None:
    """torch's team of threads; None where its runtime is not to be had."""
    if _forked:
        return None
    runtimes = filter(None, map(_opened, _loaded_runtimes()))
    return next((OpenMPTeam(runtime) for runtime in runtimes), None)


def _opened(path: str) -> Any:
    """Return a runtime by its path; None if it is gone, or an OpenMP without the entry point."""
    try:
        runtime = ctypes.CDLL(path)
    except OSError:
        return None
    return runtime if hasattr(runtime, "GOMP_parallel") else None


def _loaded_runtimes() -> list[str]:
    """Return paths of the OpenMP runtimes in this process, torch's own first."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:  # not Linux
        return []
    paths = {line.split(maxsplit=5)[-1] for line in maps if "omp" in line and "/" in line}
    runtimes = [p for p in paths if Path(p).name.startswith(("libgomp", "libiomp", "libomp"))]
    return sorted(runtimes, key=lambda p: ("torch" not in p, p))


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    openmp_team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
