"""What a table is: jobs that give rows, and how its figures are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from steprule.bench.results import Row
from steprule.bench.settings import Settings
from steprule.cli.page import UNIT_GAP

Writer = Callable[[float], str]


@dataclass(frozen=True)
class Job:
    """A part of a table that is measured as one: what it is, and the rows it gives."""

    what: str
    run: Callable[[], Sequence[Row]]


@dataclass(frozen=True)
class Table:
    """One table of the command.

    Attributes:
        name: on the command line and in the JSON file.
        title: over the table.
        case: the head of its first column.
        about: how it was measured, for the reader of the figures.
        jobs: what to measure, in the order of the rows.
        write: a reading in words.
        facts: further columns, and how their figures are written.
        about_facts: what these columns are, for where the rows have any.
        has_ratio: whether torch's best over ours means something.
    """

    name: str
    title: str
    case: str
    about: str
    jobs: Callable[[Settings], Iterable[Job]]
    write: Writer
    facts: Mapping[str, Writer] = field(default_factory=dict)
    about_facts: str = ""
    has_ratio: bool = True


def brief(seconds: float) -> str:
    """Return seconds in three digits, in the unit that leaves some of them before the point."""
    for unit, scale in (("s", 1), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g}{UNIT_GAP}{unit}"
    return f"{seconds * 1e6:.3g}{UNIT_GAP}µs"


def megabytes(count: float) -> str:
    """Return bytes as MB."""
    return f"{count / 2**20:.1f}{UNIT_GAP}MB"


def times(ratio: float) -> str:
    """Return a ratio in three digits."""
    return f"{ratio:.3g}x" if ratio < 100 else f"{ratio:.0f}x"
