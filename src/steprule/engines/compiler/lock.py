"""Who works with LLVM, one thread at a time; a fork waits for it.

A child has none of its parent's other threads. If one of them was compiling, LLVM (and llvmlite's
own lock) would be in the midst of that for ever, and the child's first kernel would never come.
"""

from __future__ import annotations

import os
import threading

# A compilation takes less; whoever holds the lock for longer than that may be waiting for the fork.
PATIENCE = 5.0


class CompilerLock:
    """A lock that a thread may take again while it has it, and that a child finds free."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._is_waited_for = False

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    def before_fork(self) -> None:
        """Wait for the thread that has it, if not for ever."""
        self._is_waited_for = self._lock.acquire(timeout=PATIENCE)

    def after_fork(self) -> None:
        """Go on in the parent."""
        if self._is_waited_for:
            self._lock.release()

    def after_fork_in_child(self) -> None:
        """Go on in the child."""
        if self._is_waited_for:
            self._lock.release()
        else:
            self._lock = threading.RLock()


compiler_lock = CompilerLock()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=compiler_lock.before_fork,
        after_in_parent=compiler_lock.after_fork,
        after_in_child=compiler_lock.after_fork_in_child,
    )
