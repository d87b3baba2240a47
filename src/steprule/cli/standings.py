"""Who is first: medians over seeds, with intervals, and what can't be ranked."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from steprule.cli.contenders import Contender
from steprule.cli.runs import Run

# With fewer values than this a bootstrap says less than the values themselves.
FEWEST_FOR_BOOTSTRAP = 5
RESAMPLES = 4000


@dataclass(frozen=True)
class Standing:
    """One contender over all seeds.

    Attributes:
        contender: who.
        runs: its runs that count, a seed each.
        rank: from 1; None where half of the runs or more broke off.
        median: of the figure that ranks; infinite where there is no rank.
        low: the lower end of the interval.
        high: the upper end; infinite if runs in it diverged.
    """

    contender: Contender
    runs: tuple[Run, ...]
    rank: int | None
    median: float
    low: float
    high: float

    @property
    def label(self) -> str:
        """The contender's name as the user wrote it."""
        return self.contender.label

    @property
    def broken_off(self) -> int:
        """How many of its runs diverged or failed."""
        return sum(not math.isfinite(run.value) for run in self.runs)

    @property
    def failure(self) -> str:
        """Why it has no figure: "diverged", what failed, or ""."""
        ends = [run.end for run in self.runs if run.end]
        return "" if self.rank is not None or not ends else ends[0]

    def figure(self, name: str) -> float:
        """Return the median over seeds of a figure at the last point; NaN if none has it."""
        found = [
            run.points[-1].figures[name]
            for run in self.runs
            if run.points and not run.end and name in run.points[-1].figures
        ]
        return statistics.median(found) if found else math.nan


def interval_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval about the median of some values, infinite ones included.

    Of fewer than five values: the least and the greatest. Of more: the bootstrap's percentile
    interval of 95% for the median, from 4000 resamples with a seed of their own.
    """
    if len(values) < FEWEST_FOR_BOOTSTRAP:
        return min(values), max(values)
    # Resampling places, not values: quantiles of infinities are not defined.
    ordered = np.sort(np.asarray(values))
    drawn = np.random.default_rng(0).integers(0, len(values), (RESAMPLES, len(values)))
    medians = np.sort(np.sort(drawn, axis=1)[:, (len(values) - 1) // 2])
    low, high = (medians[int(share * (RESAMPLES - 1))] for share in (0.025, 0.975))
    return float(ordered[low]), float(ordered[high])


def interval_name(seeds: int) -> str:
    """Return what the interval over so many seeds is."""
    if seeds < FEWEST_FOR_BOOTSTRAP:
        return "least to greatest"
    return "95% bootstrap interval"


def standings_of(runs: Sequence[Run]) -> list[Standing]:
    """Return the contenders, the best first; those that broke off last, in the order given.

    If everybody trained to the end with some seeds, only these count: medians are then of the
    same seeds. If with none, everything counts.
    """
    unfinished = {run.seed for run in runs if not run.is_over}
    counting = [run for run in runs if run.seed not in unfinished] or list(runs)
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, [])
    for run in counting:
        by_label[run.label].append(run)
    found = [_standing(tuple(mine)) for mine in by_label.values() if mine]
    found.sort(key=lambda standing: standing.median)
    return [
        standing if math.isinf(standing.median) else replace(standing, rank=place)
        for place, standing in enumerate(found, start=1)
    ]


def _standing(runs: tuple[Run, ...]) -> Standing:
    values = [run.value for run in runs]
    # The upper of two medians: a mean with infinity would be none.
    is_whole = all(math.isfinite(value) for value in values)
    median = statistics.median(values) if is_whole else statistics.median_high(values)
    return Standing(runs[0].contender, runs, None, median, *interval_of(values))
