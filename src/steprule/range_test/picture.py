"""The picture of a range test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from steprule.plotting import COLOURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def picture(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> Figure:
    """Return losses over the lr, which rises by decades."""
    try:
        from steprule.picture import Picture
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install '.[cli]' in the checkout") from error

    figure = Picture(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    axes = figure.subplots()
    axes.set_xscale("log")
    axes.plot(lrs, losses, ".", color="0.6", markersize=4, label="loss of a batch")
    axes.plot(lrs, smoothed, color=COLOURS[0], linewidth=1.9, label="smoothed")
    if suggestion is not None:
        label = f"suggestion: {suggestion:.2g}"
        axes.axvline(suggestion, color=COLOURS[1], linestyle="--", label=label)
    if smoothed:  # an explosion would leave nothing else to be seen
        low, high = min(smoothed), max(smoothed)
        margin = 0.1 * (high - low) or 1.0
        axes.set_ylim(low - margin, high + margin)
    axes.set_xlabel("learning rate (log scale)")
    axes.set_ylabel("training loss")
    axes.set_title("Learning-rate range test", fontsize=10, loc="left")
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    return figure
