"""Pictures of schedules: curves over steps, as a matplotlib figure or as text."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.schedules import Schedule, checks
from steprule.schedules.base import Array

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with any colour vision.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKS = "*o+x#@%&"
STAIRS = 12


@dataclass(frozen=True)
class Curve:
    """Values at steps 0, 1, 2, ..., what to call them, and where they were meant to end."""

    label: str
    values: Array
    end: int | None = None


def plot_schedule(scheduler_or_schedule: Any, steps: int) -> Figure:
    """Draw the first `steps` steps of a schedule, or of a scheduler for each group.

    The optimizer of a scheduler is left untouched: what is no closed form is rehearsed on a
    stand-in, from where it stands now.

    Args:
        scheduler_or_schedule: a schedule, or a scheduler of steprule or of torch.
        steps: how many steps to show, at least 1.

    Returns:
        A matplotlib figure of its own, outside pyplot: `figure.savefig("lr.png")`.

    Raises:
        TypeError: it can be neither called nor rehearsed, or goes by a metric.
        ImportError: matplotlib is not installed.
    """
    return draw(curves(scheduler_or_schedule, steps))


def _plot(self: Schedule, steps: int) -> Figure:
    """Draw the first `steps` steps; returns a matplotlib figure (needs matplotlib)."""
    return plot_schedule(self, steps)


# Schedules import nothing above them, so that what draws them is given to them from here.
_plot.__name__, _plot.__qualname__ = "plot", "Schedule.plot"
Schedule.plot = _plot  # type: ignore[method-assign]


def curves(thing: Any, steps: int, label: str | None = None) -> list[Curve]:
    """One curve for a schedule, one for each group of a scheduler.

    Args:
        thing: a schedule, or a scheduler of steprule or of torch.
        steps: how many, at least 1.
        label: its name in the legend; default the schedule itself or the scheduler's class.
    """
    count = checks.whole("steps", steps, low=1)
    if isinstance(thing, Schedule):
        return [Curve(label or repr(thing), thing(np.arange(count)))]
    if not hasattr(thing, "optimizer"):
        raise TypeError(f"expected a schedule or a scheduler, got {thing!r}")
    values = _scheduler_values(thing, count)
    name = label or type(thing).__name__
    end = None if getattr(thing, "hold_last", False) else getattr(thing, "T_max", None)
    several = values.shape[1] > 1
    if several and np.all(values == values[:, :1]):
        return [Curve(f"{name}, all groups", values[:, 0], end)]
    return [
        Curve(f"{name}, group {index}" if several else name, values[:, index], end)
        for index in range(values.shape[1])
    ]


def _scheduler_values(scheduler: Any, count: int) -> Array:
    """Return rows of lrs: by the closed form, or by rehearsing."""
    from steprule.lr_scheduler.composite import CompositeLR, wants_metrics
    from steprule.lr_scheduler.lambdas import MultiplicativeLR
    from steprule.lr_scheduler.pure import PureLR
    from steprule.lr_scheduler.rehearsal import rehearse

    if isinstance(scheduler, PureLR) and not isinstance(scheduler, MultiplicativeLR):
        return np.array([scheduler.lr_at(step) for step in range(count)])
    if wants_metrics(scheduler):
        raise TypeError(
            f"{type(scheduler).__name__} goes by a metric, so that its lr cannot be foreseen: "
            "plot the other schedulers it is made of"
        )
    copy = scheduler._fresh_copy() if isinstance(scheduler, CompositeLR) else rehearse(scheduler)
    rows = []
    with warnings.catch_warnings():
        # The stand-in is never stepped, which some schedulers remark upon.
        warnings.simplefilter("ignore")
        for _ in range(count):
            rows.append([float(group["lr"]) for group in copy.optimizer.param_groups])
            copy.step()
    return np.array(rows)


def draw(lines: Sequence[Curve]) -> Figure:
    """Put curves in one figure, with a legend below when there are several."""
    try:
        from steprule.picture import Picture
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install '.[cli]' in the checkout") from error

    below = 0.27 * len(lines) if len(lines) > 1 else 0.0
    figure = Picture(figsize=(7.2, 3.9 + below), dpi=150, layout="constrained")
    axes = figure.subplots()
    for index, line in enumerate(lines):
        colour = COLOURS[index % len(COLOURS)]
        dash = DASHES[index // len(COLOURS) % len(DASHES)]
        # Stairs have upright risers; a curve would look ragged drawn that way.
        style = "steps-post" if len(np.unique(line.values)) <= STAIRS else "default"
        axes.plot(line.values, dash, color=colour, linewidth=1.9, label=line.label, drawstyle=style)
    _mark_ends(axes, lines)
    axes.set_xlabel("step")
    axes.set_ylabel("value")
    axes.margins(x=0.01, y=0.06)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    top = max((float(np.max(np.abs(line.values))) for line in lines), default=0.0)
    if 0 < top < 1e-2:
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    if len(lines) > 1:
        figure.legend(loc="outside lower center", frameon=False, fontsize=9)
    elif lines:
        axes.set_title(lines[0].label, fontsize=10, loc="left")
    return figure


def _mark_ends(axes: Any, lines: Sequence[Curve]) -> None:
    """Shade what lies past the length a scheduler was given, where it goes on regardless."""
    ends = {line.end for line in lines if line.end is not None and line.end < len(line.values) - 1}
    for end in sorted(ends):
        last = max(len(line.values) for line in lines) - 1
        axes.axvspan(end, last, color="0.5", alpha=0.1, linewidth=0)
        axes.annotate(
            "past T_max",
            (end, 1),
            xycoords=("data", "axes fraction"),
            xytext=(4, -4),
            textcoords="offset points",
            va="top",
            fontsize=8,
            color="0.35",
        )


def draw_text(lines: Sequence[Curve], width: int = 72, height: int = 16) -> str:
    """Return the same picture in characters: one mark for each curve, axes, and a legend.

    Args:
        lines: what to draw.
        width, height: size of the area inside the axes, in characters.
    """
    count = max(len(line.values) for line in lines)
    low = min(float(line.values.min()) for line in lines)
    high = max(float(line.values.max()) for line in lines)
    canvas = [[" "] * width for _ in range(height)]
    for index in reversed(range(len(lines))):
        values = lines[index].values
        for column in range(width):
            step = round(column * (count - 1) / (width - 1)) if count > 1 else 0
            if step < len(values):
                share = (values[step] - low) / (high - low) if high > low else 0.5
                canvas[height - 1 - round(share * (height - 1))][column] = MARKS[index % len(MARKS)]
    ticks = {0: f"{high:.4g}", height // 2: f"{(high + low) / 2:.4g}", height - 1: f"{low:.4g}"}
    margin = max(map(len, ticks.values()))
    rows = [
        f"{ticks.get(number, ''):>{margin}} |{''.join(row)}".rstrip()
        for number, row in enumerate(canvas)
    ]
    last = str(count - 1)
    rows.append(" " * margin + " +" + "-" * width)
    rows.append(" " * margin + "  0" + "step".center(width - 1 - len(last)) + last)
    rows += [f"  {MARKS[index % len(MARKS)]} {line.label}" for index, line in enumerate(lines)]
    return "\n".join(rows)
