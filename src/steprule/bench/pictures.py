"""The charts of a run: bars of ratios, and curves of time against size."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from steprule.bench.results import OURS, Row
from steprule.bench.tables import Table
from steprule.bench.tables.scaling import FLOATS, THREADS
from steprule.bench.tables.steps import PASSES
from steprule.bench.tables.table import times
from steprule.cli.charts import BarChart, LineChart, Series, Style

AHEAD, BEHIND = Style(0), Style(1)
RATIO = "median of torch's best mode over ours, above 1 ours is faster"


def charts_of(table: Table, rows: Sequence[Row]) -> list[LineChart | BarChart]:
    """Return the charts of one table."""
    if rows and FLOATS in rows[0].facts:
        return [*_curves(table, rows)]
    charts: list[LineChart | BarChart] = []
    if table.has_ratio:
        charts += _bars(table, rows)
    else:
        charts += _readings(table, rows)
    for name in PASSES:
        fact = f"of {name}"
        limits = [(row.optimizer, row.facts[fact]) for row in rows if fact in row.facts]
        if limits:
            charts.append(
                BarChart(
                    _key(table.name, f"of {name}"),
                    f"Large steps against the memory's speed ({name})",
                    "time of a step over that of moving its bytes, shorter is better",
                    [(label, AHEAD, value, times(value)) for label, value in limits],
                    mark=1.0,
                )
            )
    return charts


def _bars(table: Table, rows: Sequence[Row]) -> list[BarChart]:
    """Ratios: a chart for each case, or one of all cases where there is but one optimizer."""
    several = len({row.optimizer for row in rows}) > 1
    keys = list(dict.fromkeys(row.case if several else row.optimizer for row in rows))
    charts = []
    for key in keys:
        bars = [
            (row.optimizer if several else row.case, _style(row.ratio), row.ratio, times(row.ratio))
            for row in rows
            if key == (row.case if several else row.optimizer) and row.ratio
        ]
        if bars:
            title = f"{table.title}: {key}"
            charts.append(BarChart(_key(table.name, key), title, RATIO, bars, mark=1.0))
    return charts


def _style(ratio: float) -> Style:
    return AHEAD if ratio >= 1 else BEHIND


def _readings(table: Table, rows: Sequence[Row]) -> list[BarChart]:
    """Return every contender's median, for tables whose ratios mean nothing."""
    bars = [
        (f"{row.optimizer} {name}", Style(0, 0, name != OURS), row.median(name), write)
        for row in rows
        for name in row.readings
        for write in [table.write(row.median(name))]
    ]
    if not bars:
        return []
    # A chart of nothing but zeros has no scale.
    scale = max(value for *_, value, _ in bars) or 1.0
    scaled = [(label, style, value / scale, text) for label, style, value, text in bars]
    return [BarChart(table.name, table.title, "relative, shorter is better", scaled)]


def _curves(table: Table, rows: Sequence[Row]) -> list[LineChart]:
    """Time against size: ours thin, torch's best mode of each size as a pale band."""
    charts = []
    for optimizer in dict.fromkeys(row.optimizer for row in rows):
        series = []
        counts = sorted({int(row.facts[THREADS]) for row in rows})
        for slot, count in enumerate(counts):
            of_count = [
                row for row in rows if row.optimizer == optimizer and row.facts[THREADS] == count
            ]
            sizes = [row.facts[FLOATS] for row in of_count]
            suffix = f"{count} thread{'s' if count > 1 else ''}"
            best = [row.median(row.best) if row.best else math.nan for row in of_count]
            ours = [row.median() for row in of_count]
            series.append(Series(f"torch, {suffix}", Style(slot, 0, True), sizes, best))
            series.append(Series(f"ours, {suffix}", Style(slot), sizes, ours))
        charts.append(
            LineChart(
                _key(table.name, optimizer),
                f"{table.title}: {optimizer}",
                "floats in 10 tensors, log scale",
                "seconds a step, log scale",
                series,
                log=True,
                log_x=True,
            )
        )
    return charts


def _key(table: str, name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{table}-{name}".lower()).strip("-")
