"""The report as tables, in Markdown: `python benchmarks/gpu/tables.py gpu.json` prints them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def tables_of(report: dict[str, Any]) -> str:
    """Return all tables of a report."""
    ran_on = report["ran_on"]
    about = ", ".join(f"{key} {value}" for key, value in ran_on.items() if key != "card")
    parts = [f"Card: {ran_on['card']}; {about}."]
    timings = report.get("timings")
    if not timings:
        return parts[0]
    bandwidth = timings.get("copy_bytes_per_s")
    if isinstance(bandwidth, float):
        parts.append(f"A copy within the card: {bandwidth / 1e12:.2f} TB/s, read and written.")
    parts += [_set(title, rows, bandwidth) for title, rows in _rows(timings, "sets").items()]
    parts.append(_formats(_rows(timings, "formats")))
    parts.append(_others(_rows(timings, "others")))
    for name in ("first_step", "launch_us"):
        parts.append(f"{name}: {json.dumps(timings.get(name))}")
    return "\n\n".join(parts)


def _rows(timings: dict[str, Any], name: str) -> dict[str, Any]:
    found = timings.get(name)
    rows = found.items() if isinstance(found, dict) else ()
    return {name: row for name, row in rows if isinstance(row, dict)}


def _set(title: str, rows: dict[str, Any], bandwidth: Any) -> str:
    lines = []
    for name, row in rows.items():
        ours = row.get("steprule", {})
        cells = [name, _ms(ours, "card_ms"), _ms(ours, "wall_ms"), _ms(ours, "host_ms")]
        for way in ("fused", "foreach"):
            theirs = row.get(way, {})
            cells += [
                _ms(theirs, "card_ms"),
                _ratio(theirs, ours, "card_ms"),
                _ratio(theirs, ours, "wall_ms"),
            ]
        used = ""
        if "bytes" in row and "card_ms" in ours and isinstance(bandwidth, float):
            used = f"{row['bytes'] / ours['card_ms'] * 1e3 / bandwidth:.2f}"
        lines.append([*cells, used])
    head = [title, "card ms", "wall ms", "host ms"]
    for way in ("fused", "foreach"):
        head += [f"torch {way} ms", "card x", "wall x"]
    return _table([*head, "of copy"], lines)


def _formats(rows: dict[str, Any]) -> str:
    plain, fused = rows.get("plain", {}), rows.get("torch fused float32", {})
    lines = [
        [name, _ms(row, "card_ms"), _ratio(fused, row, "card_ms"), _ratio(row, plain, "card_ms")]
        for name, row in rows.items()
    ]
    return _table(["Adam", "card ms", "torch fused float32 / it", "it / plain"], lines)


def _others(rows: dict[str, Any]) -> str:
    lines = []
    for name, row in rows.items():
        ours = row.get("steprule", row.get("triton", {}))
        theirs = row.get("foreach", {})
        cells = [name, _ms(ours, "card_ms"), _ms(theirs, "card_ms")]
        lines.append([*cells, _ratio(theirs, ours, "card_ms"), _ratio(theirs, ours, "wall_ms")])
    head = ["rule", "card ms", "foreach's (torch's, or ours) ms", "card x", "wall x"]
    return _table(head, lines)


def _ms(row: dict[str, Any], key: str) -> str:
    return f"{row[key]:.3g}" if key in row else "-"


def _ratio(over: dict[str, Any], under: dict[str, Any], key: str) -> str:
    return f"{over[key] / under[key]:.2f}" if key in over and key in under else "-"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    print(tables_of(json.loads(Path(sys.argv[1]).read_text())))
