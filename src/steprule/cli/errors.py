"""The one error a command raises when what the user asked for cannot be done."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from steprule.schedules import ParseError


class CommandError(Exception):
    """A request that cannot be met; its message is one line and says what is valid."""


def unreadable(written: str, error: ParseError) -> CommandError:
    """Return what a command says of a text that is no schedule: one line, with the column."""
    problem = str(error).split("\n")[0]
    return CommandError(f"{written}, column {error.column}: {problem}")
