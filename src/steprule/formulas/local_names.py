"""What a rule's function calls its intermediate results."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from steprule.language.recording import Symbol, Value

# Where symbols are handled, but not a rule's own.
_NOT_OF_RULES = ("steprule.ops", "steprule.language.recording", "steprule.matrix_ops")


def with_local_names(function: Callable[[], Any]) -> tuple[Any, dict[Value, str]]:
    """Run a function that records a rule.

    Returns:
        What it returns, and of each quantity the name of the local variable that first held it.
        Names are for reading alone: where a variable is rebound, several have the same.
    """
    names: dict[Value, str] = {}

    def of_line(frame: FrameType, event: str, _: Any) -> Any:
        if event in ("line", "return"):
            for name, held in frame.f_locals.items():
                if isinstance(held, Symbol):
                    names.setdefault(held.value, name)
        return of_line

    def of_call(frame: FrameType, _event: str, _: Any) -> Any:
        return None if frame.f_globals.get("__name__", "").startswith(_NOT_OF_RULES) else of_line

    before = sys.gettrace()
    sys.settrace(of_call)
    try:
        return function(), names
    finally:
        sys.settrace(before)
