"""Charts of a comparison, each drawn once for a PNG and once for a page of either theme."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from steprule.cli.chart_labels import joined, neighbours
from steprule.cli.chart_labels import spread as spread

# In widths of the line, as SVG has them.
DASH_ARRAYS = (
    *("none", "5 1.5", "1.5 1.2", "6 1.5 1 1.5", "10 3"),
    *("3 3", "8 1.5 1 1.5 1 1.5", "1 4"),
)
LINE_STYLES = tuple(
    "solid" if dashes == "none" else (0, tuple(map(float, dashes.split())))
    for dashes in DASH_ARRAYS
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LABEL_GAP = 0.07
OUTSIDE = 1.1
# Small enough that text of 9 points is read on a telephone, to whose width a chart is scaled.
SIZE = (5.2, 3.4)


@dataclass(frozen=True)
class Ink:
    """The colours of one rendering: text, grid, background, and one per optimizer."""

    text: str
    muted: str
    grid: str
    series: tuple[str, ...]


# Hues after Okabe and Ito, told apart with any colour vision, darkened to read on white.
PAPER = Ink(
    text="#1c1f23",
    muted="#5d6670",
    grid="#e3e6ea",
    series=("#0068a8", "#c94f00", "#00805c", "#a8458c", "#8a6a00", "#3f464d", "#c0303c"),
)
# The same hues, lightened to read on the dark page.
DARK_SERIES = ("#58b1ea", "#ff8f4d", "#3fcf9f", "#e293cb", "#dfb944", "#b9c2cb", "#ff7f87")
# Placeholders that `svg` turns into the page's CSS variables, so that it can change theme.
PAGE = Ink(
    text="#00fe01",
    muted="#00fe02",
    grid="#00fe03",
    series=tuple(f"#00fd{slot:02d}" for slot in range(len(PAPER.series))),
)
VARIABLES = {PAGE.text: "--text", PAGE.muted: "--muted", PAGE.grid: "--grid"} | {
    colour: f"--series-{slot}" for slot, colour in enumerate(PAGE.series)
}


@dataclass(frozen=True)
class Style:
    """How one optimizer is drawn: its rule's colour; torch's class as a wide pale band."""

    slot: int
    dash: int = 0
    is_torch: bool = False


@dataclass(frozen=True)
class Series:
    """One optimizer's values over x."""

    label: str
    style: Style
    x: Sequence[float]
    y: Sequence[float]
    band: tuple[Sequence[float], Sequence[float]] | None = None


@dataclass(frozen=True)
class LineChart:
    """Curves with their names at their right ends."""

    key: str
    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    log: bool = False
    log_x: bool = False
    percent: bool = False
    top: float = math.inf
    whole_x: bool = True
    has_markers: bool = False
    has_lines: bool = True

    def draw(self, ink: Ink) -> Figure:
        """Return the chart in `ink`."""
        figure, axes = _frame(self.title, len(self.series), ink)
        bottom, top = self._limits()
        if self.log:
            axes.set_yscale("log")
        axes.set_ylim(bottom, top)
        for one in self.series:
            self._draw_one(axes, one, ink, bottom, top)
        axes.margins(x=0.02 if self.has_markers else 0)
        axes.set_xlabel(literal(self.x_label))
        axes.set_ylabel(literal(self.y_label))
        if self.log_x:
            axes.set_xscale("log")
        else:
            axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=self.whole_x))
        if self.percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        if self.has_lines:
            self._label_ends(axes, ink)
        elif self.series:
            figure.legend(
                loc="outside lower center",
                ncols=3,
                frameon=False,
                fontsize=9,
                labelcolor=ink.text,
            )
        return figure

    def _draw_one(self, axes: Axes, one: Series, ink: Ink, bottom: float, top: float) -> None:
        colour = ink.series[one.style.slot % len(ink.series)]
        wide = one.style.is_torch
        axes.plot(
            one.x,
            np.ma.masked_invalid(np.ma.masked_outside(one.y, bottom, top)),
            label=literal(one.label),
            color=colour,
            linewidth=6 if wide else 1.8,
            alpha=0.3 if wide else 1.0,
            linestyle=LINE_STYLES[one.style.dash % len(LINE_STYLES)] if self.has_lines else "none",
            marker=MARKERS[one.style.dash % len(MARKERS)] if self.has_markers else "none",
            markersize=8 if wide else 5,
            solid_capstyle="butt" if wide else "round",
            zorder=2 if wide else 3,
        )
        if one.band is not None:
            low, high = (np.clip(np.nan_to_num(ys, posinf=top), bottom, top) for ys in one.band)
            axes.fill_between(one.x, low, high, color=colour, alpha=0.15, linewidth=0, zorder=1)
        gone = [x for x, y in zip(one.x, one.y, strict=True) if not y <= top]
        if self.has_markers and gone:
            axes.plot(
                gone,
                [top] * len(gone),
                color=colour,
                linestyle="none",
                marker="x",
                clip_on=False,
            )

    def _limits(self) -> tuple[float, float]:
        shown = [
            value
            for one in self.series
            for value in one.y
            if math.isfinite(value) and value <= self.top and (value > 0 or not self.log)
        ]
        low, high = (min(shown), max(shown)) if shown else (0.1, 1.0)
        if self.log:
            margin = max(high / low, 10.0) ** 0.06
            return low / margin, high * margin
        margin = max(high - low, abs(high) * 0.1, 1e-3) * 0.06
        return low - margin, high + margin

    def _label_ends(self, axes: Axes, ink: Ink) -> None:
        if not self.series:
            return
        groups = neighbours([(self._end(one, axes.get_ylim()), one) for one in self.series])
        places = [place for place, _ in groups]
        gap = min(LABEL_GAP * SIZE[1] / _height(len(self.series)), 1.0 / len(groups))
        for (place, group), label_place in zip(groups, spread(places, gap), strict=True):
            slots = {one.style.slot % len(ink.series) for one in group}
            colour = ink.series[slots.pop()] if len(slots) == 1 else ink.muted
            gone = " ↑" if place > 1 else ""
            axes.plot(
                [1.005, 1.03],
                [min(place, 1), label_place],
                transform=axes.transAxes,
                color=colour,
                linewidth=0.7,
                clip_on=False,
            )
            axes.text(
                1.04,
                label_place,
                literal(joined([one.label for one in group]) + gone),
                transform=axes.transAxes,
                color=colour,
                fontsize=9,
                verticalalignment="center",
            )

    def _end(self, one: Series, limits: tuple[float, float]) -> float:
        """Return where the curve ends, 0 at the bottom and 1 at the top; more when it has left."""
        last = one.y[-1]
        low, high = (math.log(limit) if self.log else limit for limit in limits)
        if not last <= limits[1]:
            return OUTSIDE
        if self.log:
            last = math.log(max(last, limits[0]))
        return (last - low) / (high - low)


@dataclass(frozen=True)
class BarChart:
    """One bar an optimizer, with its value at the end; a line at `mark`, where it is given."""

    key: str
    title: str
    x_label: str
    bars: Sequence[tuple[str, Style, float, str]]
    mark: float | None = None
    log: bool = False

    def draw(self, ink: Ink) -> Figure:
        """Return the chart in `ink`."""
        figure, axes = _frame(self.title, len(self.bars), ink)
        if self.log:
            axes.set_xscale("log")
        for row, (_, style, value, text) in enumerate(self.bars):
            colour = ink.series[style.slot % len(ink.series)]
            axes.barh(row, value, height=0.62, color=colour, alpha=0.4 if style.is_torch else 0.95)
            axes.annotate(
                text,
                (value, row),
                xytext=(5, 0),
                textcoords="offset points",
                color=ink.text,
                fontsize=9,
                verticalalignment="center",
            )
        if self.mark is not None:
            axes.axvline(self.mark, color=ink.muted, linewidth=1, linestyle=LINE_STYLES[1])
        axes.set_yticks(range(len(self.bars)), [literal(label) for label, *_ in self.bars])
        axes.set_ylim(len(self.bars) - 0.4, -0.6)
        axes.set_xlim(*self._limits())
        axes.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes.grid(visible=False, axis="y")
        axes.set_xlabel(literal(self.x_label))
        return figure

    def _limits(self) -> tuple[float, float]:
        values = [value for _, _, value, _ in self.bars if value > 0]
        if self.log and values:
            low, high = min(values), max(values)
            return low / 2, high * (high / low) ** 0.22
        return 0, max(values, default=0) * 1.18 or 1


@dataclass(frozen=True)
class SpreadChart:
    """A row an optimizer: a dot for each value, a bar at the median, a line over the interval."""

    key: str
    title: str
    x_label: str
    rows: Sequence[tuple[str, Style, float, tuple[float, float], Sequence[float]]]
    log: bool = False

    def draw(self, ink: Ink) -> Figure:
        """Return the chart in `ink`."""
        figure, axes = _frame(self.title, len(self.rows), ink)
        if self.log:
            axes.set_xscale("log")
            axes.xaxis.set_minor_formatter(NullFormatter())
        for row, (_, style, median, (low, high), values) in enumerate(self.rows):
            colour = ink.series[style.slot % len(ink.series)]
            alpha = 0.4 if style.is_torch else 1.0
            finite = [value for value in values if math.isfinite(value)]
            end = high if math.isfinite(high) else max(finite)
            axes.plot([low, end], [row, row], color=colour, linewidth=1.5, alpha=alpha)
            axes.plot(
                [median], [row], color=colour, marker="|", markersize=16, mew=2.5, alpha=alpha
            )
            axes.plot(
                finite,
                [row] * len(finite),
                color=colour,
                linestyle="none",
                marker="o",
                markersize=4.5,
                alpha=0.6 * alpha,
            )
        axes.set_yticks(range(len(self.rows)), [literal(label) for label, *_ in self.rows])
        axes.set_ylim(len(self.rows) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0, labelcolor=ink.text)
        axes.set_xlabel(literal(self.x_label))
        return figure


Chart = LineChart | BarChart | SpreadChart


def literal(text: str) -> str:
    """Return what matplotlib shows as this text, without taking dollars for formulas."""
    return text.replace("$", r"\$")


def _height(rows: int) -> float:
    return max(SIZE[1], 0.9 + 0.23 * rows)


def _frame(title: str, rows: int, ink: Ink) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(SIZE[0], _height(rows)), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(
        literal(title), loc="left", color=ink.text, fontsize=11, fontweight="bold", pad=10
    )
    axes.grid(visible=True, which="major", color=ink.grid, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(ink.grid)
    axes.tick_params(which="both", colors=ink.muted, labelsize=9, length=0)
    axes.set_facecolor("none")
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set_color(ink.muted)
        axis.label.set_fontsize(9)
    return figure, axes


def png(chart: Chart) -> bytes:
    """Return `chart` on white as a PNG file."""
    file = io.BytesIO()
    chart.draw(PAPER).savefig(file, format="png", dpi=160, facecolor="white")
    return file.getvalue()


def svg(chart: Chart) -> str:
    """Return `chart` as an `<svg>` element that takes its colours and font from the page."""
    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": chart.key}):
        chart.draw(PAGE).savefig(text, format="svg", transparent=True, metadata={"Date": None})
    element = text.getvalue()
    element = element[element.index("<svg") :]
    for placeholder, variable in VARIABLES.items():
        element = element.replace(placeholder, f"var({variable})")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<style[^>]*>.*?</style>", "", element, flags=re.DOTALL)
    # Several drawings share a page, and matplotlib numbers its ids from one in each.
    element = re.sub(r'(id="|url\(#|href="#)', rf"\1{chart.key}-", element)
    return re.sub(r' width="[^"]*" height="[^"]*"', ' role="img"', element, count=1)
