"""One thing that was looked at: what was found, and whether it is well."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How well a thing is.

    Attributes:
        OK: as it should be.
        NOTE: everything works, but something costs time, or was perhaps not meant.
        PROBLEM: something is broken.
    """

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found of one thing.

    Attributes:
        section: the part of the report that it stands in.
        name: the thing.
        value: what was found, in one line.
        level: how well it is.
        advice: what to do, where something is not as it should be.
    """

    section: str
    name: str
    value: str
    level: Level = Level.OK
    advice: str = ""


def note(section: str, name: str, value: str, advice: str = "") -> Finding:
    """Return a finding that all works with, but that people should know of."""
    return Finding(section, name, value, Level.NOTE, advice)


def problem(section: str, name: str, value: str, advice: str = "") -> Finding:
    """Return a finding that something is broken by."""
    return Finding(section, name, value, Level.PROBLEM, advice)
