"""The report of a comparison: one self-contained page, and its charts as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from steprule.cli import charts, page
from steprule.cli.charts import BarChart, Chart, Style
from steprule.cli.comparison import Comparison
from steprule.cli.curves import FigureCurves, is_wide, lr_chart, sensitivity_chart, spread_chart
from steprule.cli.page import duration
from steprule.cli.page import size as size
from steprule.cli.runs import Run
from steprule.cli.standings import Standing, interval_name

# A page of more charts than this is no longer read.
MOST_FIGURES = 4
PAGE = "report.html"
COSTS = ("steps", "a step", "step() median", "step() total", "state", "engine")
EN_DASH = "\N{EN DASH}"


def write(folder: Path, comparison: Comparison) -> list[Path]:
    """Write the page and the charts to `folder`; return the charts' paths."""
    styles = _styles(comparison)
    return page.write(
        folder / PAGE,
        "report.html.j2",
        _charts(comparison, styles),
        {
            "comparison": comparison,
            "columns": columns(comparison),
            "rows": [
                (
                    styles[standing.label].slot % len(charts.PAPER.series),
                    charts.DASH_ARRAYS[styles[standing.label].dash % len(charts.DASH_ARRAYS)],
                    standing.contender.is_torch,
                    row(comparison, standing),
                )
                for standing in comparison.standings
            ],
            "ranked_by": comparison.figures[0],
            "interval": interval_name(comparison.seeds_that_count),
            "plans": [(run.label, run.plan) for run in _first_runs(comparison) if run.plan],
            "facts": {**comparison.conditions, **page.versions()},
        },
    )


def columns(comparison: Comparison) -> list[str]:
    """Return the heads of the table's columns."""
    first, *others = comparison.figures
    decay = ["weight decay"] if _tunes_decay(comparison) else []
    interval = ["interval"] if comparison.seeds_that_count > 1 else []
    before, after = ["rank", "optimizer", "lr", *decay], [*interval, *COSTS]
    taken = {*before, *after}
    first, *others = (f"{one} (evaluate)" if one in taken else one for one in (first, *others))
    return [*before, first, *interval, *others, *COSTS]


def row(comparison: Comparison, standing: Standing) -> list[str]:
    """Return the cells of one optimizer's row, in the order of `columns`."""
    first, *others = comparison.figures
    run = standing.runs[0]
    options = standing.contender.options
    cells = ["-" if standing.rank is None else str(standing.rank), standing.label]
    cells.append(_rate(standing.contender.lr))
    if _tunes_decay(comparison):
        decay = options.get("weight_decay")
        cells.append(_rate(decay if isinstance(decay, (int, float)) else None))
    cells.append(standing.instead_of_a_rank or figure(first, standing.median))
    if comparison.seeds_that_count > 1:
        ends = (f"{end:#.4g}".rstrip(".") for end in (standing.low, standing.high))
        cells.append("-" if math.isinf(standing.low) else EN_DASH.join(ends).replace("inf", "∞"))
    cells += [figure(name, standing.figure(name)) for name in others]
    return [
        *cells,
        f"{len(run.step_seconds):,}",
        duration(run.median_train),
        duration(run.median_step),
        duration(run.total_step),
        page.size(run.state_bytes),
        "+".join(run.engines) or ("torch" if standing.contender.is_torch else "-"),
    ]


def figure(name: str, value: float) -> str:
    """Return a figure as text: accuracies in percent."""
    if math.isnan(value):
        return "-"
    if math.isinf(value):
        return "diverged"
    if "accuracy" in name:
        return f"{value:.2%}"
    return f"{value:.6f}" if 1e-3 <= abs(value) < 1e4 else f"{value:.4g}"


def _rate(value: float | None) -> str:
    return "-" if value is None or not math.isfinite(value) else f"{value:.3g}"


def _tunes_decay(comparison: Comparison) -> bool:
    trials = [trial for some in comparison.trials.values() for trial in some]
    return any(trial.weight_decay is not None for trial in trials)


def _first_runs(comparison: Comparison) -> list[Run]:
    return [standing.runs[0] for standing in comparison.standings]


def _styles(comparison: Comparison) -> dict[str, Style]:
    """One colour a rule; torch's own class and other engines of it share that colour.

    Past the last colour they come round again, with other dashes: no two look the same.
    """
    slots: dict[str, int] = {}
    drawn: dict[tuple[int, bool], int] = {}
    styles: dict[str, Style] = {}
    for contender in comparison.contenders:
        slot = slots.setdefault(contender.name, len(slots)) % len(charts.PAPER.series)
        drawn[slot, contender.is_torch] = drawn.get((slot, contender.is_torch), -1) + 1
        styles[contender.label] = Style(slot, drawn[slot, contender.is_torch], contender.is_torch)
    return styles


def _charts(comparison: Comparison, styles: dict[str, Style]) -> list[Chart]:
    standings = [one for one in comparison.standings if any(run.points for run in one.runs)]
    found: list[Chart] = []
    if standings:
        curves = FigureCurves(standings, styles, comparison.figures)
        first, *others = comparison.figures
        found += [curves.by_step(first), curves.by_time(first)]
        found += [curves.by_step(name) for name in others[: MOST_FIGURES - 1]]
        seeds = comparison.seeds_that_count
        if seeds > 1:
            found.append(spread_chart(first, standings, styles, interval_name(seeds)))
    if any(comparison.trials.values()):
        found.append(
            sensitivity_chart(
                comparison.figures[0], comparison.trials, styles, comparison.is_search
            )
        )
    if standings:
        found += _costs(_first_runs(comparison), styles)
        found.append(lr_chart(_first_runs(comparison), styles))
    return found


def _costs(runs: Sequence[Run], styles: dict[str, Style]) -> list[BarChart]:
    timed = [run for run in runs if run.step_seconds]
    if not timed:
        return []
    times = [run.median_step * 1e6 for run in timed]
    sizes = [float(run.state_bytes) for run in timed]
    return [
        BarChart(
            "step",
            "Time in step(), median",
            f"microseconds a step{_scale(times)}, shorter is better",
            [
                (run.label, styles[run.label], time, duration(run.median_step))
                for run, time in zip(timed, times, strict=True)
            ],
            log=bool(_scale(times)),
        ),
        BarChart(
            "state",
            "Memory of the optimizer's state",
            f"bytes{_scale(sizes)}, shorter is better",
            [
                (run.label, styles[run.label], bytes_, page.short_size(run.state_bytes))
                for run, bytes_ in zip(timed, sizes, strict=True)
            ],
            log=bool(_scale(sizes)),
        ),
    ]


def _scale(values: Sequence[float]) -> str:
    return ", log scale" if is_wide([value for value in values if value]) else ""
