"""torch's threads by its own C function for extensions, ``torch_parallel_for`` (2.10 and later)."""

from __future__ import annotations

import ctypes

from steprule.engines.kernel_cache.cache import Library, library_for
from steprule.engines.kernel_cache.cached_lookup import cached_lookup
from steprule.engines.torch_library import address_of_function

# What a thread runs: some shares of the chunks, by the kernel's `update`. A task is laid out as in
# openmp_team.py.
_SOURCE = """\
def shares(first, last, task):
    update = load_int64(task, 0)
    control = load_int64(task, 1)
    edges = load_int64(task, 3)
    for share in range(first, last):
        start = load_int64(edges, share)
        call_native(update, control, start, load_int64(edges, share + 1), 0, 0)
    return 0
"""


@cached_lookup
def native() -> Library:
    """Return what a thread runs."""
    return library_for(_SOURCE, ("shares",), arity=3, title="the loop over a thread's shares")


class TorchTeam:
    """torch's own parallel loop: a function that runs a task on so many of its threads."""

    is_torchs = True
    native = staticmethod(native)
    queries = (0, 0)

    def __init__(self, parallel_for: int) -> None:
        self.region = parallel_for
        kinds = [ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p]
        self._region = ctypes.CFUNCTYPE(ctypes.c_int, *kinds)(self.region)

    def run(self, task_address: int, threads: int) -> None:
        """Run a task to its end; the caller's thread takes part."""
        self._region(0, threads, 1, native().addresses[0], task_address)


def torch_team() -> TorchTeam | None:
    """Return torch's threads by its own function; None where this torch has none."""
    address = address_of_function("torch_parallel_for")
    return TorchTeam(address) if address else None
