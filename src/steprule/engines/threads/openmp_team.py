"""torch's threads by the OpenMP runtime that it has loaded: for torch before 2.10."""

from __future__ import annotations

import ctypes
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

    #: Whether ``region`` is called as torch's function is, and not as the runtime's.
    is_torchs = False
    native = staticmethod(native)

    def __init__(self, runtime: Any) -> None:
        address = ctypes.cast(runtime.GOMP_parallel, ctypes.c_void_p).value or 0
        kinds = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        self.region = address
        self._region = ctypes.CFUNCTYPE(None, *kinds)(address)
        self.queries = [
            ctypes.cast(function, ctypes.c_void_p).value or 0
            for function in (runtime.omp_get_thread_num, runtime.omp_get_num_threads)
        ]

    def run(self, task_address: int, threads: int) -> None:
        """Run a task (laid out as above) to its end; the caller's thread takes part."""
        self._region(native().addresses[0], task_address, threads, 0)


def openmp_team() -> OpenMPTeam | None:
    """Return the team of torch's OpenMP runtime; None where that is not to be had."""
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
