"""Real processes for tests of many ranks: started once, handed functions by name, killed when late.

A worker imports the function's module by its name, so that it must be one of ``tests/`` (which
needs no pytest to be imported), and calls it with its process group up. What it returns or raises
comes back pickled.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from time import monotonic
from typing import Any

HERE = Path(__file__).parent


class RanksError(AssertionError):
    """A rank raised, died or was late: its traceback."""


class Ranks:
    """So many processes in one gloo group, each waiting for a function to call.

    Args:
        size: how many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._folder = tempfile.TemporaryDirectory()
        store = Path(self._folder.name, "store")
        path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._processes = [
            subprocess.Popen(
                [sys.executable, str(HERE / "processes.py"), str(rank), str(size), str(store)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
            )
            for rank in range(size)
        ]

    def run(
        self, function: Callable[..., Any], *arguments: Any, seconds: float = 60, **keywords: Any
    ) -> list[Any]:
        """Call ``function(rank, *arguments, **keywords)`` on every rank.

        Returns:
            What each rank returned.

        Raises:
            RanksError: a rank raised, died, or was not done in so many seconds. The processes
                are gone then.
        """
        task = pickle.dumps((function.__module__, function.__qualname__, arguments, keywords))
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write(len(task).to_bytes(8, "little") + task)
            process.stdin.flush()
        try:
            answers = self._answers(monotonic() + seconds)
        except BaseException:
            self.kill()
            raise
        failed = {rank: text for rank, (is_right, text) in answers.items() if not is_right}
        if failed:
            self.kill()
            raise RanksError("\n".join(f"rank {rank}: {text}" for rank, text in failed.items()))
        return [answers[rank][1] for rank in range(self.size)]

    def _answers(self, until: float) -> dict[int, tuple[bool, Any]]:
        """Return what each rank answers; the first that fails is enough."""
        parts = dict.fromkeys(range(self.size), b"")
        found: dict[int, tuple[bool, Any]] = {}
        with DefaultSelector() as selector:
            for rank, process in enumerate(self._processes):
                assert process.stdout is not None
                selector.register(process.stdout.fileno(), EVENT_READ, rank)
            while len(found) < self.size:
                late = {rank: "was not done in time" for rank in parts if rank not in found}
                failed = any(not is_right for is_right, _ in found.values())
                # Who waits for a rank that has failed need not be waited for.
                wait = min(until - monotonic(), 2.0) if failed else until - monotonic()
                events = selector.select(max(wait, 0.0))
                if not events:
                    known = {r: text for r, (is_right, text) in found.items() if not is_right}
                    raise RanksError(
                        "\n".join(f"rank {r}: {t}" for r, t in (known or late).items())
                    )
                for key, _ in events:
                    rank = key.data
                    read = os.read(key.fd, 1 << 20)
                    parts[rank] += read
                    if not read:
                        found[rank] = (False, "died")
                        selector.unregister(key.fd)
                    elif len(parts[rank]) >= 8:
                        length = int.from_bytes(parts[rank][:8], "little")
                        if len(parts[rank]) == 8 + length:
                            found[rank] = pickle.loads(parts[rank][8:])
        return found

    @property
    def are_alive(self) -> bool:
        """Whether all processes wait for more."""
        return all(process.poll() is None for process in self._processes)

    def kill(self) -> None:
        """End all processes at once."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()
        self._folder.cleanup()


_STARTED: dict[int, Ranks] = {}


def ranks(size: int = 2) -> Ranks:
    """Return running processes, started when they are first asked for (or were killed)."""
    found = _STARTED.get(size)
    if found is None or not found.are_alive:
        found = _STARTED[size] = Ranks(size)
    return found


@contextmanager
def ended_at_exit() -> Iterator[None]:
    """End all processes at the end of a block."""
    try:
        yield
    finally:
        for one in _STARTED.values():
            if one.are_alive:
                one.kill()
        _STARTED.clear()


def _serve(rank: int, size: int, store: str) -> None:
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed must not stand among the answers
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{store}", rank=rank, world_size=size)
    while header := sys.stdin.buffer.read(8):
        module, name, arguments, keywords = pickle.loads(
            sys.stdin.buffer.read(int.from_bytes(header, "little"))
        )
        try:
            function: Any = import_module(module)
            for part in name.split("."):
                function = getattr(function, part)
            answer = pickle.dumps((True, function(rank, *arguments, **keywords)))
        except Exception:  # noqa: BLE001  # told to who asked
            answer = pickle.dumps((False, traceback.format_exc()))
        answers.write(len(answer).to_bytes(8, "little") + answer)
        answers.flush()


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
