"""A kernel's function, run over shares of its work on several threads."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import numpy as np

from steprule.engines.kernel_cache import Library
from steprule.engines.team import team
from steprule.engines.workers import workers


class Shares:
    """The memory in which a team of threads is told its task: kept, so that it stays valid.

    Args:
        edges: where each share begins, and the last one's end.
    """

    def __init__(self, edges: np.ndarray[Any, Any]) -> None:
        self._edges = edges
        self._words = np.zeros(7, dtype=np.int64)
        self._address = self._words.ctypes.data

    def run(self, library: Library, index: int, control: int) -> None:
        """Call function ``index`` of the library as ``f(control, first, last)`` on each share."""
        crew = team()
        threads = len(self._edges) - 1
        if crew is not None:
            self._words[:] = (
                library.addresses[index],
                library.scratch,
                control,
                threads,
                self._edges.ctypes.data,
                *crew.queries,
            )
            crew.run(self._address, threads)
            return
        function = functools.partial(library.functions[index], control)
        workers().run(
            [functools.partial(function, low, high) for low, high in pairwise(self._edges.tolist())]
        )
