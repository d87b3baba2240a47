"""What the charts of a comparison show: figures over steps and time, spreads, sensitivity."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from steprule.cli.charts import LineChart, Series, SpreadChart, Style
from steprule.cli.runs import Point, Run
from steprule.cli.standings import Standing
from steprule.cli.trials import Trial

# A run that diverges leaves through the top; it does not flatten the others.
TOP = 10.0
# From so great a ratio of the greatest to the least on, an axis is logarithmic.
WIDE = 10.0
MOST_BANDS = 8


@dataclass(frozen=True)
class FigureCurves:
    """Charts of a figure on the way.

    Attributes:
        standings: whose.
        styles: how each is drawn.
        figures: the names of what was looked at, the one that ranks first.
    """

    standings: Sequence[Standing]
    styles: Mapping[str, Style]
    figures: Sequence[str]

    def by_step(self, figure: str) -> LineChart:
        """Return the figure over steps."""
        return self._chart(figure, "step", "step", key=chart_keys(self.figures)[figure])

    def by_time(self, figure: str) -> LineChart:
        """Return the figure over seconds of training."""
        return self._chart(
            figure,
            "wall time",
            "seconds of forward, backward and step()",
            key=f"{chart_keys(self.figures)[figure]}_by_time",
        )

    def _chart(self, figure: str, by: str, x_label: str, key: str) -> LineChart:
        series = [self._series(standing, figure, by == "step") for standing in self.standings]
        log_x = by != "step" and is_wide([one.x[-1] for one in series if one.x])
        if log_x:
            series = [_without_zero(one) for one in series]
        starts = [one.y[0] for one in series if one.y and math.isfinite(one.y[0])]
        values = [value for one in series for value in one.y if math.isfinite(value)]
        is_share = "accuracy" in figure
        is_log = not is_share and _is_positive(values)
        unit = "share" if is_share else "log scale" if is_log else "as the problem gives it"
        spread = ""
        if any(len(standing.runs) > 1 for standing in self.standings):
            spread = "; median, range" if self._has_bands else "; median"
        return LineChart(
            key,
            f"{figure[:1].upper()}{figure[1:]} by {by}",
            f"{x_label}{', log scale' if log_x else ''}",
            f"{figure}, {unit}{spread}",
            series,
            log=is_log,
            percent=is_share,
            top=TOP * max(starts) if starts and is_log else math.inf,
            whole_x=by == "step",
            log_x=log_x,
        )

    @property
    def _has_bands(self) -> bool:
        """Whether curves have ranges round them: many of these hide everything."""
        return len(self.standings) <= MOST_BANDS

    def _series(self, standing: Standing, figure: str, over_steps: bool) -> Series:
        count = max(len(run.points) for run in standing.runs)
        looks = [[_at(run, place) for run in standing.runs] for place in range(count)]
        values = [[_value(point, figure) for point in look] for look in looks]
        # Before any step an accuracy is a coin toss, which would flatten the part worth reading.
        first = 1 if "accuracy" in figure and count > 1 else 0
        seen = [[point for point in look if point is not None] for look in looks]
        x = [
            statistics.median(point.step if over_steps else point.seconds for point in look)
            for look in seen
        ]
        y = [statistics.median(some) for some in values]
        band = None
        if len(standing.runs) > 1 and self._has_bands:
            band = ([min(some) for some in values][first:], [max(some) for some in values][first:])
        return Series(standing.label, self.styles[standing.label], x[first:], y[first:], band=band)


def spread_chart(
    figure: str, standings: Sequence[Standing], styles: Mapping[str, Style], interval: str
) -> SpreadChart:
    """Return where each contender's runs ended."""
    shown = [standing for standing in standings if standing.rank is not None]
    return SpreadChart(
        "spread",
        f"Last {figure} by seed",
        f"{figure}; bar: median, line: {interval}",
        [
            (
                standing.label,
                styles[standing.label],
                standing.median,
                (standing.low, standing.high),
                [run.value for run in standing.runs],
            )
            for standing in shown
        ],
        log=is_wide([run.value for standing in shown for run in standing.runs]),
    )


def sensitivity_chart(
    figure: str,
    trials: Mapping[str, Sequence[Trial]],
    styles: Mapping[str, Style],
    is_search: bool,
) -> LineChart:
    """Return the last figure over the lr that was tried."""
    series = []
    for label, some in trials.items():
        shown = sorted((t for t in some if t.end != "pruned"), key=lambda trial: trial.lr)
        if shown:
            rates, values = [t.lr for t in shown], [t.value for t in shown]
            series.append(Series(label, styles[label], rates, values))
    values = [value for one in series for value in one.y if math.isfinite(value)]
    is_log = _is_positive(values)
    return LineChart(
        "sensitivity",
        f"Sensitivity to lr, {'trials of the search' if is_search else 'a sweep'}",
        "lr, log scale (crosses: diverged)",
        f"last {figure}{', log scale' if is_log else ''}",
        series,
        log=is_log,
        log_x=True,
        top=TOP**2 * statistics.median(values) if is_log else math.inf,
        has_markers=True,
        has_lines=not is_search,
    )


def lr_chart(runs: Sequence[Run], styles: Mapping[str, Style]) -> LineChart:
    """Return the learning rates over the steps."""
    runs = [run for run in runs if run.rates]
    rates = [rate for run in runs for rate in run.rates if rate > 0]
    return LineChart(
        "lr",
        "Learning rate",
        "step",
        "lr of the first parameter group" + (", log scale" if is_wide(rates) else ""),
        [
            Series(run.label, styles[run.label], range(1, len(run.rates) + 1), run.rates)
            for run in runs
        ],
        log=is_wide(rates),
    )


def _is_positive(values: Sequence[float]) -> bool:
    """Whether values go on a logarithmic axis; a zero, a loss that could not be smaller, may."""
    return bool(values) and min(values) >= 0 and max(values) > 0


def is_wide(values: Sequence[float]) -> bool:
    """Whether values are all positive and so far apart that an axis should be logarithmic."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) > WIDE * min(finite)


def _without_zero(series: Series) -> Series:
    """Return a series without points before any time has passed."""
    first = sum(x <= 0 for x in series.x)
    band = series.band and (series.band[0][first:], series.band[1][first:])
    return Series(series.label, series.style, series.x[first:], series.y[first:], band)


def _at(run: Run, place: int) -> Point | None:
    return run.points[place] if place < len(run.points) else None


def _value(point: Point | None, figure: str) -> float:
    """Return what the point has; a run that broke off before it is beyond all others."""
    value = math.inf if point is None else point.figures.get(figure, math.inf)
    return math.inf if math.isnan(value) else value


def chart_keys(figures: Sequence[str]) -> dict[str, str]:
    """Return the names of the charts' files by figure: that which ranks is always `loss`."""
    keys = {figures[0]: "loss"}
    for figure in figures[1:]:
        slug = "".join(letter if letter.isalnum() else "_" for letter in figure.lower())
        key, number = f"figure_{slug}", 2
        while key in keys.values():
            key, number = f"figure_{slug}_{number}", number + 1
        keys[figure] = key
    return keys
