"""A kernel's function, run over shares of its work on several threads."""

from __future__ import annotations

import functools
from array import array
from collections.abc import Sequence
from itertools import pairwise

from steprule.engines.kernel_cache.cache import Library
from steprule.engines.threads.team import team
from steprule.engines.threads.thread_pool import thread_pool


class WorkSplit:
    """Function ``index`` of a library, to be called as ``f(control, first, last)`` on each share.

    Args:
        edges: where each share begins, and the last one's end.

    Attributes:
        task: the address of what a team of threads is told (team.py); 0 without a team.
    """

    def __init__(self, library: Library, index: int, control: int, edges: Sequence[int]) -> None:
        threads = team()
        self._edges = array("q", edges)
        self._function = functools.partial(library.functions[index], control)
        self.threads = len(edges) - 1
        words = [library.addresses[index], control, self.threads, self._edges.buffer_info()[0]]
        self._words = array("q", [*words, *(threads.queries if threads is not None else (0, 0))])
        self.task = self._words.buffer_info()[0] if threads is not None else 0

    def run(self) -> None:
        """Do all shares and return."""
        threads = team()
        if threads is not None and self.task:
            threads.run(self.task, self.threads)
            return
        thread_pool().run(
            [functools.partial(self._function, low, high) for low, high in pairwise(self._edges)]
        )
