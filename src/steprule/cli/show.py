"""What a comparison has seen: on the terminal, and as files in the report's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.table import Table

from steprule.checkpoints.replacing import replacing
from steprule.cli import report
from steprule.cli.comparison import RESULTS, Comparison
from steprule.cli.notes import notes_of

# They are in the report all the same.
LEFT_OUT_FIRST = ("step() total", "steps", "engine", "a step", "state", "step() median")

LEGEND = {
    "a step": "median time of forward, backward and step()",
    "step() median": "of the optimizer's part alone",
    "step() total": "its sum over the run",
    "state": "bytes that the optimizer keeps",
}


def show(comparison: Comparison, folder: Path, console: Console) -> None:
    """Print the table and the notes, and write the report to `folder`."""
    comparison.notes += notes_of(comparison)
    if comparison.standings:
        drawn = table(comparison, console.width)
        console.print(drawn)
        heads = [str(column.header) for column in drawn.columns]
        legend = "; ".join(f"{name}: {what}" for name, what in LEGEND.items() if name in heads)
        if legend:
            console.print(legend, markup=False, highlight=False, soft_wrap=True)
    for note in comparison.notes:
        console.print(f"Note: {note}", markup=False, highlight=False, soft_wrap=True)
    images = _write(comparison, folder)
    is_partial = " (partial)" if comparison.is_partial else ""
    plots = ", ".join(image.name for image in images)
    for line in (
        f"Report: {folder / report.PAGE}{is_partial}",
        f"Plots:  {plots} beside it",
        f"Raw:    {RESULTS} beside it",
    ):
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    """Write page, charts and JSON, and remove charts of a call before that are not drawn again.

    What was measured is kept even if drawing is interrupted; then there is no page beside it.
    """
    before = _charts_of_the_last_call(folder)
    images: list[Path] = []
    try:
        images = report.write(folder, comparison)
    except BaseException:
        (folder / report.PAGE).unlink(missing_ok=True)
        raise
    finally:
        with replacing(folder / RESULTS) as file:
            file.write(comparison.json([image.name for image in images]).encode())
        for path in before:
            if path not in images:
                path.unlink(missing_ok=True)
    return images


def _charts_of_the_last_call(folder: Path) -> list[Path]:
    try:
        names = json.loads((folder / RESULTS).read_text(encoding="utf-8"))["charts"]
        return [folder / name for name in names if Path(name).name == name]
    except (OSError, ValueError, KeyError, TypeError):  # none, or another file of that name
        return []


def table(comparison: Comparison, width: int) -> Table:
    """Return the table, without the columns that a narrow terminal has no room for."""
    rows = [report.row(comparison, standing) for standing in comparison.standings]
    columns = list(zip(report.columns(comparison), zip(*rows, strict=True), strict=True))
    for name in LEFT_OUT_FIRST:
        if 2 + sum(2 + max(map(len, (head, *cells))) for head, cells in columns) > width:
            columns = [column for column in columns if column[0] != name]
    drawn = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, _ in columns:
        justify: Literal["left", "right"] = "left" if name in ("optimizer", "engine") else "right"
        drawn.add_column(name, justify=justify, overflow="fold", no_wrap=name == "optimizer")
    for cells in zip(*(cells for _, cells in columns), strict=True):
        drawn.add_row(*cells)
    return drawn
