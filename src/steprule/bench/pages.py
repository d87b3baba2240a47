"""The page of a run: its tables and charts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from steprule.bench.grid import cells, columns, footnote
from steprule.bench.pictures import charts_of
from steprule.bench.record import Measured
from steprule.bench.settings import Settings
from steprule.cli import page


def write_page(
    folder: Path, measured: Measured, settings: Settings, facts: Mapping[str, str], command: str
) -> tuple[Path, list[Path]]:
    """Write the page and its charts to `folder`; return the page's path and the charts' paths."""
    path = folder / "bench.html"
    images = page.write(
        path,
        "bench.html.j2",
        [chart for table, rows in measured for chart in charts_of(table, rows)],
        {
            "tables": [
                (
                    table.title,
                    footnote(table, rows),
                    columns(table, rows),
                    [cells(table, row, rows) for row in rows],
                )
                for table, rows in measured
            ],
            "notes": settings.notes,
            "facts": facts,
            "command": command,
        },
    )
    return path, images
