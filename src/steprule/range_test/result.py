"""What a range test has found."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from steprule.range_test.suggestion import smoothed, suggestion_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LRRangeTest:
    """The loss at each lr of a sweep; ``str()`` says what it suggests and why.

    Attributes:
        lrs: the lr of each step, of the group whose lr is the largest.
        losses: the loss of its batch before the step.
        steps: how many were asked for.
        stopped: why it ended.
        window: losses on each side that the smoothed curve is a mean of.
        smoothed: that curve; what has exploded is cut off.
        suggestion: the lr at which the smoothed loss falls fastest; None if it never fell, or if
            nothing can be said of where it falls fastest.
        reason: why this one, or why none.
    """

    lrs: tuple[float, ...]
    losses: tuple[float, ...]
    steps: int
    stopped: str
    window: int
    smoothed: tuple[float, ...] = field(init=False)
    suggestion: float | None = field(init=False)
    reason: str = field(init=False)

    def __post_init__(self) -> None:
        mean = smoothed(self.losses, self.window)
        suggestion, reason = suggestion_of(self.lrs, self.losses, mean, self.window, self.stopped)
        object.__setattr__(self, "smoothed", tuple(mean.tolist()))
        object.__setattr__(self, "suggestion", suggestion)
        object.__setattr__(self, "reason", reason)

    def __str__(self) -> str:
        swept = f", lr {self.lrs[0]:.2g} to {self.lrs[-1]:.2g}" if self.lrs else ""
        found = "none" if self.suggestion is None else f"lr {self.suggestion:.2g}"
        return (
            f"{len(self.lrs)} of {self.steps} steps{swept}: {self.stopped}\n"
            f"suggestion: {found}; {self.reason}"
        )

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw losses over lrs, raw and smoothed, with the suggestion.

        Args:
            path: where to save it as well: .png, .svg or .pdf.

        Returns:
            A matplotlib figure of its own, outside pyplot.

        Raises:
            ImportError: matplotlib is not installed.
        """
        from steprule.range_test.picture import picture

        figure = picture(self.lrs, self.losses, self.smoothed, self.suggestion)
        if path is not None:
            figure.savefig(path)
        return figure
