"""The one line that says why a first step is slow: a kernel is being compiled.

Printed to stderr only when compiling has taken longer than :data:`PATIENCE`, once for each thing
that is compiled, and never where ``STEPRULE_QUIET`` is set.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

# Seconds that nobody asks about; most kernels take one.
PATIENCE = 2.0


class Timer(Protocol):
    """What is asked of a timer: that of :mod:`threading`, or a test's."""

    daemon: bool

    def start(self) -> None: ...
    def cancel(self) -> None: ...


MakeTimer = Callable[[float, Callable[[], None]], Any]

_announced: set[str] = set()


@contextmanager
def announce_if_slow(
    title: str, folder: Path | None, make_timer: MakeTimer = threading.Timer
) -> Iterator[None]:
    """Say, if what is done inside takes long, what it is and how to have it done beforehand.

    Args:
        title: what is compiled: a rule's name.
        folder: where the result will be kept; None if nowhere.
        make_timer: called with seconds and a function; by default a thread that waits.
    """
    if title in _announced or is_quiet():
        yield
        return

    def announce() -> None:
        _announced.add(title)
        # One write, so that lines of several processes do not mix; stderr is None under pythonw.
        if sys.stderr is not None:
            sys.stderr.write(message(title, folder) + "\n")
            sys.stderr.flush()

    timer: Timer = make_timer(PATIENCE, announce)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def is_quiet() -> bool:
    """Tell whether silence is asked for: ``STEPRULE_QUIET`` set, and not to 0, no or false."""
    return os.environ.get("STEPRULE_QUIET", "").lower() not in ("", "0", "no", "false")


def message(title: str, folder: Path | None) -> str:
    """Return the line itself."""
    kept = (
        f"kept in {folder} (`steprule warm` does it ahead of time)"
        if folder is not None and _can_write(folder)
        else "not kept, since no folder can be written to (set STEPRULE_CACHE_DIR to one)"
    )
    return f"steprule: compiling {title} for this processor; the result is {kept}"


def _can_write(folder: Path) -> bool:
    """Tell whether the folder, or the nearest one above it that exists, may be written to."""
    nearest = next((f for f in (folder, *folder.parents) if f.exists()), None)
    return nearest is not None and nearest.is_dir() and os.access(nearest, os.W_OK)
