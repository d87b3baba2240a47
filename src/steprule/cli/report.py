"""The report of a comparison: one self-contained page, and its charts as PNG files."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from steprule.cli import charts, page
from steprule.cli.charts import BarChart, LineChart, Series, Style
from steprule.cli.page import duration, size
from steprule.cli.training import Run

COLUMNS = (
    "optimizer",
    "lr",
    "train loss",
    "test accuracy",
    "step() median",
    "step() total",
    "state",
)


@dataclass(frozen=True)
class Summary:
    """What a page says besides its figures."""

    subtitle: str
    command: str
    notes: Sequence[str]
    conditions: Mapping[str, str]


def write(folder: Path, runs: Sequence[Run], summary: Summary) -> tuple[Path, list[Path]]:
    """Write the page and the charts to `folder`; return the page's path and the charts' paths."""
    styles = _styles(runs)
    path = folder / "report.html"
    images = page.write(
        path,
        "report.html.j2",
        _charts(runs),
        {
            "summary": summary,
            "columns": COLUMNS,
            "rows": [
                (
                    styles[run.label].slot % len(charts.PAPER.series),
                    run.contender.is_torch,
                    row(run),
                )
                for run in runs
            ],
            "runs": runs,
            "facts": {**summary.conditions, **page.versions()},
        },
    )
    return path, images


def row(run: Run) -> tuple[str, ...]:
    """Return the cells of one optimizer's row, in the order of `COLUMNS`."""
    return (
        run.label,
        f"{run.rates[0]:g}" if math.isfinite(run.rates[0]) else "-",
        f"{run.losses[-1]:.6f}" if math.isfinite(run.losses[-1]) else "diverged",
        f"{run.accuracies[-1]:.2%}",
        duration(run.median_step),
        duration(run.total_step),
        size(run.state_bytes),
    )


def _styles(runs: Sequence[Run]) -> dict[str, Style]:
    """One colour a rule; torch's own class and other engines of it share that colour."""
    slots: dict[str, int] = {}
    drawn: dict[int, int] = {}
    styles = {}
    for run in runs:
        contender = run.contender
        slot = slots.setdefault(contender.name, len(slots))
        # Past the last colour they come round again, with another dash.
        dash = slot // len(charts.PAPER.series)
        if not contender.is_torch:
            drawn[slot] = drawn.get(slot, -1) + 1
            dash += drawn[slot]
        styles[run.label] = Style(slot, dash, contender.is_torch)
    return styles


def _charts(runs: Sequence[Run]) -> list[LineChart | BarChart]:
    styles = _styles(runs)
    epochs = range(len(runs[0].losses))
    steps = range(1, len(runs[0].rates) + 1)
    rates = [rate for run in runs for rate in run.rates if rate > 0]
    return [
        LineChart(
            "loss",
            "Training loss",
            "epoch",
            "cross-entropy, log scale",
            [Series(run.label, styles[run.label], epochs, run.losses) for run in runs],
            log=True,
            # A run that diverges leaves through the top; it does not flatten the others.
            top=10 * runs[0].losses[0],
        ),
        LineChart(
            "accuracy",
            "Test accuracy",
            "epoch",
            "share of test rows classified correctly",
            [
                # Epoch 0 is a coin toss that would flatten the part worth reading.
                Series(run.label, styles[run.label], epochs[1:], run.accuracies[1:])
                for run in runs
            ],
            percent=True,
        ),
        BarChart(
            "step",
            "Time in step(), median",
            "microseconds a step, shorter is better",
            [
                (run.label, styles[run.label], run.median_step * 1e6, duration(run.median_step))
                for run in runs
            ],
        ),
        LineChart(
            "lr",
            "Learning rate",
            "step",
            "lr of the first parameter group",
            [Series(run.label, styles[run.label], steps, run.rates) for run in runs],
            log=bool(rates) and max(rates) > 10 * min(rates),
        ),
    ]
