"""A table's figures as text, for the terminal and for the page."""

from __future__ import annotations

from collections.abc import Sequence

from steprule.bench.results import OURS, TORCH, Row
from steprule.bench.tables import Table
from steprule.bench.tables.table import Writer, times

NONE = "-"


def columns(table: Table, rows: Sequence[Row]) -> list[str]:
    """Return the heads of the columns."""
    ratio = ["ratio"] if table.has_ratio else []
    return [
        *(table.case, "optimizer", OURS, "min to max"),
        *(f"torch {name}" for name in _present(rows, TORCH)),
        "best's min to max",
        *ratio,
        *_peers(rows),
        *_facts(table, rows),
    ]


def cells(table: Table, row: Row, rows: Sequence[Row]) -> list[str]:
    """Return one row's cells, in the order of `columns`; medians where nothing else is said."""
    ratio = [times(row.ratio) if row.ratio else NONE] if table.has_ratio else []
    return [
        *(row.case, row.optimizer, table.write(row.median()), _spread(table.write, row, OURS)),
        *(_median(table.write, row, name) for name in _present(rows, TORCH)),
        _spread(table.write, row, row.best),
        *ratio,
        *(_peer(table.write, row, name) for name in _peers(rows)),
        *(
            table.facts[name](row.facts[name]) if name in row.facts else NONE
            for name in _facts(table, rows)
        ),
    ]


def footnote(table: Table, rows: Sequence[Row]) -> str:
    """Return how it was measured, of the columns that are there."""
    return " ".join([table.about, *([table.about_facts] if _facts(table, rows) else [])]).strip()


def _present(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    return [name for name in names if any(name in row.readings for row in rows)]


def _peers(rows: Sequence[Row]) -> list[str]:
    found = dict.fromkeys(name for row in rows for name in row.readings)
    return [name for name in found if name != OURS and name not in TORCH]


def _facts(table: Table, rows: Sequence[Row]) -> list[str]:
    return [name for name in table.facts if any(name in row.facts for row in rows)]


def _median(write: Writer, row: Row, name: str) -> str:
    return write(row.median(name)) if name in row.readings else NONE


def _peer(write: Writer, row: Row, name: str) -> str:
    ratio = row.ratio_to(name) if name in row.readings else None
    return f"{_median(write, row, name)} ({times(ratio)})" if ratio else NONE


def _spread(write: Writer, row: Row, name: str | None) -> str:
    if name is None:
        return NONE
    values = row.readings[name]
    low, high = write(min(values)), write(max(values))
    # The unit once, where both have the same.
    number, _, unit = low.partition("\N{NO-BREAK SPACE}")
    return f"{number} to {high}" if high.endswith(unit) else f"{low} to {high}"
