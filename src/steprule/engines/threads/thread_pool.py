"""Threads that run parts of a kernel beside the caller's own.

They wait on a queue and release the GIL while they compute. A pool of OpenMP's own is not used: it
would clash with torch's, and does not survive a fork.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from typing import Any

from steprule.engines.uninterrupted import uninterrupted

Task = Callable[[], Any]


class _Latch:
    """Released by each helper when done; the caller waits for all of them."""

    def __init__(self, parties: int) -> None:
        self.waiting = SimpleQueue[BaseException | None]()
        self.parties = parties

    def wait(self) -> None:
        outcomes = [self.waiting.get() for _ in range(self.parties)]
        for failure in outcomes:
            if failure is not None:
                raise failure


class ThreadPool:
    """A pool that grows to what is asked for."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Task, _Latch]] = SimpleQueue()
        self._count = 0
        self._lock = threading.Lock()

    def run(self, tasks: Sequence[Task]) -> None:
        """Run all tasks, the last one on the caller's thread; return when all are done.

        Whatever signal comes: tasks use memory of the caller's.
        """
        with uninterrupted:
            self._run(tasks)

    def _run(self, tasks: Sequence[Task]) -> None:
        if len(tasks) > 1:
            self._grow_to(len(tasks) - 1)
        latch = _Latch(len(tasks) - 1)
        for task in tasks[:-1]:
            self._queue.put((task, latch))
        try:
            tasks[-1]()
        finally:
            latch.wait()

    def _grow_to(self, count: int) -> None:
        if self._count >= count:
            return
        with self._lock:
            while self._count < count:
                name = f"steprule-worker-{self._count}"
                threading.Thread(target=_work, args=(self._queue,), name=name, daemon=True).start()
                self._count += 1


def _work(queue: SimpleQueue[tuple[Task, _Latch]]) -> None:
    while True:
        task, latch = queue.get()
        failure: BaseException | None = None
        try:
            task()
        except BaseException as raised:  # noqa: BLE001  # raised again on the caller's thread
            failure = raised
        latch.waiting.put(failure)
        del task, latch, failure  # keep nothing alive while waiting for more


_pool = ThreadPool()


def thread_pool() -> ThreadPool:
    """Return this process's pool."""
    return _pool


def _after_fork() -> None:
    global _pool
    _pool = ThreadPool()  # the child has none of its parent's threads


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
