"""Running a kernel on torch's own OpenMP threads.

Between two of its parallel regions torch's threads spin for a while, so as to be there at once for
the next one. Threads of our own would share their cores with them and come late; a region of ours
on the same OpenMP runtime finds them awake. Where that runtime is not found (or after a fork,
which its threads do not survive) :mod:`steprule.engines.workers` does the work instead.
"""

from __future__ import annotations

import ctypes
import functools
import os
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm

from steprule.engines.kernel_cache import execution_engine

# What each thread of the team runs: its shares of the chunks, by the kernel's `update`.
# task: update, its scratch memory, the control block, number of shares, first chunk of each
# share (and, behind them, the end of the last), omp_get_thread_num, omp_get_num_threads.
_TEAM = """
define void @steprule_team(ptr %task) {
entry:
  %p1 = getelementptr i64, ptr %task, i64 1
  %p2 = getelementptr i64, ptr %task, i64 2
  %p3 = getelementptr i64, ptr %task, i64 3
  %p4 = getelementptr i64, ptr %task, i64 4
  %p5 = getelementptr i64, ptr %task, i64 5
  %p6 = getelementptr i64, ptr %task, i64 6
  %update = load ptr, ptr %task
  %scratch = load ptr, ptr %p1
  %control = load i64, ptr %p2
  %shares = load i64, ptr %p3
  %edges = load ptr, ptr %p4
  %thread_num = load ptr, ptr %p5
  %num_threads = load ptr, ptr %p6
  %exception = getelementptr i8, ptr %scratch, i64 16
  %me32 = call i32 %thread_num()
  %team32 = call i32 %num_threads()
  %me = sext i32 %me32 to i64
  %team = sext i32 %team32 to i64
  br label %test
test:
  %share = phi i64 [ %me, %entry ], [ %next, %work ]
  %more = icmp slt i64 %share, %shares
  br i1 %more, label %work, label %done
work:
  %low = getelementptr i64, ptr %edges, i64 %share
  %high = getelementptr i64, ptr %low, i64 1
  %first = load i64, ptr %low
  %last = load i64, ptr %high
  %status = call i32 %update(ptr %scratch, ptr %exception, i64 %control, i64 %first, i64 %last)
  %next = add i64 %share, %team
  br label %test
done:
  ret void
}
"""


class Team:
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
        self._engine = execution_engine(llvm.parse_assembly(_TEAM))
        self.entry = self._engine.get_function_address("steprule_team")

    def run(self, task_address: int, threads: int) -> None:
        """Run a task (laid out as above) to its end; the caller's thread takes part."""
        self._region(self.entry, task_address, threads, 0)


@functools.cache
def team() -> Team | None:
    """torch's team of threads; None where its runtime is not to be had."""
    if _forked:
        return None
    runtimes = filter(None, map(_opened, _loaded_runtimes()))
    return next((Team(runtime) for runtime in runtimes), None)


def _opened(path: str) -> Any:
    """A runtime by its path; None if it is gone, or an OpenMP without the entry point."""
    try:
        runtime = ctypes.CDLL(path)
    except OSError:
        return None
    return runtime if hasattr(runtime, "GOMP_parallel") else None


def _loaded_runtimes() -> list[str]:
    """Paths of the OpenMP runtimes in this process, torch's own first."""
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
    team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
