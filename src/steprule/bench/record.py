"""Everything that was measured and what it was measured with, as one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from steprule.bench.grid import footnote
from steprule.bench.results import Row
from steprule.bench.settings import Settings
from steprule.bench.tables import Table
from steprule.cli.errors import CommandError

Measured = Sequence[tuple[Table, Sequence[Row]]]


def check_file(path: Path) -> None:
    """Refuse a file that cannot be written, before anything is measured."""
    try:
        with path.open("a", encoding="utf-8"):
            pass
    except OSError as error:
        raise CommandError(
            f"--json {path}: {error.strerror}; expected a file that can be written"
        ) from error


def write_record(
    path: Path, measured: Measured, settings: Settings, facts: Mapping[str, str], command: str
) -> None:
    """Write the JSON file: facts, settings, and every table with its raw readings."""
    record: dict[str, Any] = {
        "command": command,
        "facts": dict(facts),
        "threads": settings.threads,
        "rounds": settings.rounds,
        "sets": {
            one.name: {"about": one.about, "tensors": len(one.shapes), "floats": one.elements}
            for one in settings.sets
        },
        "peers": {peer.name: peer.comparable for peer in settings.peers},
        "notes": settings.notes,
        "tables": {
            table.name: {
                "title": table.title,
                "about": footnote(table, rows),
                "rows": [row.to_json() for row in rows],
            }
            for table, rows in measured
        },
    }
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
