"""The one error a command raises when what the user asked for cannot be done."""

from __future__ import annotations


class CommandError(Exception):
    """A request that cannot be met; its message is one line and says what is valid."""
