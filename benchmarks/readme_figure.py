"""The README's figure, from a run of ``steprule bench`` on a machine that does nothing else.

steprule bench --sets small --json benchmarks/results/small_steps.json
python benchmarks/readme_figure.py benchmarks/results/small_steps.json docs/assets/step_times.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

# Between black and white, for pages of either kind; the picture itself is transparent.
INK, THEIRS, OURS = "#7d8590", "#9aa4ae", "#e8590c"


def medians(row: dict[str, Any]) -> tuple[float, float]:
    """Return milliseconds of torch's best mode and of steprule."""
    times = row["contenders"]
    return times[row["best_of_torch"]]["median"] * 1e3, times["ours"]["median"] * 1e3


def draw(run: dict[str, Any], target: Path) -> None:
    """Write bars of both times for each optimizer, the largest ratio first."""
    rows = sorted(run["tables"]["steps"]["rows"], key=lambda row: row["ratio"])
    plt.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "text.color": INK})
    figure, axes = plt.subplots(figsize=(8.4, 0.36 * len(rows) + 1.1))
    for at, row in enumerate(rows):
        theirs, ours = medians(row)
        axes.barh(at + 0.18, theirs, 0.34, color=THEIRS)
        axes.barh(at - 0.18, ours, 0.34, color=OURS)
        label = f"  {row['ratio']:.1f}x"
        axes.text(max(theirs, ours), at, label, color=INK, va="center", fontweight="bold")
    axes.set_yticks(range(len(rows)), [row["optimizer"] for row in rows], color=INK)
    axes.set_xlim(right=axes.get_xlim()[1] * 1.08)
    axes.tick_params(colors=INK, which="both", length=0)
    axes.xaxis.set_major_formatter("{x:g} ms")
    for side in ("top", "right", "left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color=INK, alpha=0.25)
    axes.set_axisbelow(True)
    facts = run["facts"]
    axes.set_title(
        "Time of one step over 1000 small tensors, shorter is better\n"
        f"torch {facts['torch']}'s best mode (grey) and steprule (orange), "
        f"{facts['cores']} cores of {facts['processor']}",
        loc="left",
        fontsize=10,
        color=INK,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, transparent=True, bbox_inches="tight", metadata={"Date": None})


if __name__ == "__main__":
    draw(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")), Path(sys.argv[2]))
