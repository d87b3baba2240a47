"""What is done without a signal's handler in the midst of it: the part of a step that writes.

Python runs the handlers of signals between any two operations of the main thread. Ctrl-C raises
there; a handler that saves a checkpoint, as before a cluster's time is up, would save some tensors
before the step and some after it. Blocking signals would not do: threads of torch's take them in,
and the handler still runs in the main thread. So for these microseconds other handlers stand in,
which only remember; what they remember is handled when all is written.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # in C, under signal
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from threading import get_ident
from typing import Any

# The functions of C: those around them, which make enums, take ten times as long.
_handler_of: Callable[[int], Any] = _signal.getsignal
_set_handler: Callable[[int, Any], Any] = _signal.signal

# SIGCHLD: torch's DataLoader has a handler that raises when a worker has died. Signals that tell
# of errors in the program's own machine code are not for Python to handle.
_NAMES = (
    "SIGINT SIGTERM SIGHUP SIGUSR1 SIGUSR2 SIGALRM SIGCHLD SIGCONT SIGQUIT SIGVTALRM SIGPROF "
    "SIGXCPU SIGIO SIGWINCH SIGTSTP SIGBREAK"
)
_SIGNALS = [int(getattr(signal, name)) for name in _NAMES.split() if hasattr(signal, name)]

_Handlers = Sequence[tuple[int, Any]]


class Uninterrupted:
    """A context in which signals wait, if this is the main thread; it may be entered again inside.

    At its end they are handled in the order in which they came, each once.
    """

    def __init__(self) -> None:
        self._main = threading.main_thread().ident
        self._depth = 0
        self._known: list[Any] = []  # the handlers of all signals when last seen
        self._python: _Handlers = ()  # those among them that Python runs
        self._held: _Handlers = ()
        self._caught: list[int] = []
        self._stand_in = self._remember

    def __enter__(self) -> None:
        if get_ident() != self._main:
            return
        if self._depth:
            self._depth += 1
            return
        handlers = list(map(_handler_of, _SIGNALS))
        if handlers != self._known:
            pairs = zip(_SIGNALS, handlers, strict=True)
            self._python = [(number, handler) for number, handler in pairs if callable(handler)]
            self._known = handlers
        held = self._python
        try:
            for number, _ in held:
                _set_handler(number, self._stand_in)
        except ValueError:  # an interpreter beside the main one, whose signals are not its own
            held = ()
        except BaseException:  # by a handler that still stood
            self._end(held)
            raise
        self._held, self._depth = held, 1

    def __exit__(self, *_: object) -> None:
        if get_ident() != self._main:
            return
        if self._depth > 1:
            self._depth -= 1
            return
        held, self._held, self._depth = self._held, (), 0
        self._end(held)

    def _remember(self, number: int, _frame: object) -> None:
        if number not in self._caught:
            self._caught.append(number)

    def _end(self, held: _Handlers) -> None:
        try:
            _put_back(held)
        finally:
            if self._caught:
                self._handle_caught()

    def _handle_caught(self) -> None:
        """Have each signal handled, also where the handler of another one raises."""
        while self._caught:
            number = self._caught.pop(0)
            try:
                handler = _handler_of(number)
                if callable(handler):
                    handler(number, sys._getframe())
            finally:
                self._handle_caught()

    def after_fork(self) -> None:
        """Be of the child, where the thread that forked is the main one: others hold nothing."""
        before, self._main = self._main, get_ident()
        if self._depth and before != self._main:
            held, self._held, self._depth = self._held, (), 0
            self._caught.clear()  # they were the parent's
            _put_back(held)


def _put_back(held: _Handlers) -> None:
    try:
        for number, handler in held:
            _set_handler(number, handler)
    except BaseException:  # one that was put back has run, and raised
        _put_back(held)
        raise


#: The one of this process.
uninterrupted = Uninterrupted()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=uninterrupted.after_fork)
