"""ProblemError: what makes no problem."""

from __future__ import annotations


class ProblemError(Exception):
    """A problem that cannot be made; the message is one line and says what is expected."""


def kind_of(value: object) -> str:
    """Return what a value is, as messages say it."""
    return type(value).__name__
