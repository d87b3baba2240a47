"""Running a kernel on torch's own threads.

Between two of its parallel loops torch's threads spin for a while, so as to be there at once for
the next one. Threads of our own would share their cores with them and come late; a loop of ours on
the same threads finds them awake. Where they can't be had (or after a fork, which they do not
survive) :mod:`steprule.engines.threads.thread_pool` does the work instead.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Protocol

from steprule.engines.kernel_cache.cache import Library
from steprule.engines.threads.openmp_team import openmp_team
from steprule.engines.threads.torch_team import torch_team


class Team(Protocol):
    """Threads of torch's, by whichever of its functions.

    Attributes:
        region: the address of the function that runs a task on threads.
        is_torchs: whether ``region`` is ``torch_parallel_for``, else OpenMP's ``GOMP_parallel``.
        queries: words of a task that what a thread runs needs: functions of the OpenMP runtime.
    """

    region: int
    is_torchs: bool

    def native(self) -> Library:
        """Return what each thread runs, compiled when first asked for."""

    @property
    def queries(self) -> Sequence[int]: ...
    def run(self, task_address: int, threads: int) -> None:
        """Run a task to its end; the caller's thread takes part."""


@functools.cache
def team() -> Team | None:
    """Return torch's threads; None where they are not to be had."""
    return None if _forked else torch_team() or openmp_team()


_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True
    team.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
