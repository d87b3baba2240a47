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
        rank: from 1, the same for equal medians; None where half of the runs or more broke off.
        median: of the figure that ranks; infinite where there is no rank.
        low: the lower end of the interval.
        high: the upper end; infinite if runs in it diverged.
        place: which of its runs' points it is judged by.
    """

    contender: Contender
    runs: tuple[Run, ...]
    rank: int | None
    median: float
    low: float
    high: float
    place: int = -1

    @property
    def label(self) -> str:
        """The contender's name as the user wrote it."""
        return self.contender.label

    @property
    def broken_off(self) -> int:
        """How many of its runs diverged or failed."""
        return sum(run.has_broken_off for run in self.runs)

    @property
    def instead_of_a_rank(self) -> str:
        """Why it has no rank: "failed", "diverged", "not judged yet"; "" if it has one."""
        if self.rank is not None:
            return ""
        if any(run.failure for run in self.runs):
            return "failed"
        return "diverged" if self.broken_off else "not judged yet"

    def figure(self, name: str) -> float:
        """Return the median over seeds of a figure where it is judged; NaN if none has it."""
        found = [
            run.points[self.place].figures[name]
            for run in self.runs
            if run.points and not run.end and name in run.points[self.place].figures
        ]
        return statistics.median(found) if found else math.nan


def interval_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the interval about the median of some values, infinite ones included.

    Of fewer than five values: the least and the greatest. Of more: the bootstrap's percentile
    interval of 95% for the median, from 4000 resamples with a seed of their own.
    """
    if len(values) < FEWEST_FOR_BOOTSTRAP:
        return min(values), max(values)
    drawn = np.random.default_rng(0).choice(np.asarray(values), (RESAMPLES, len(values)))
    # The median that ranks, and quantiles that are among the medians: between finite and infinite
    # ones numpy would make others.
    medians = np.sort([statistics.median(row) for row in drawn.tolist()])
    low, high = (medians[int(share * (RESAMPLES - 1))] for share in (0.025, 0.975))
    return float(low), float(high)


def interval_name(seeds: int) -> str:
    """Return what the interval over so many seeds is."""
    if seeds < FEWEST_FOR_BOOTSTRAP:
        return "from the least to the greatest"
    return "the bootstrap's 95% interval of the median"


def standings_of(runs: Sequence[Run]) -> list[Standing]:
    """Return the contenders, the best first; those that broke off last, in the order given.

    If everybody trained to the end with some seeds, only these count: medians are then of the
    same seeds. If with none, everything counts, as it was at the last look that all have had.
    """
    unfinished = {run.seed for run in runs if not run.is_over}
    counting = [run for run in runs if run.seed not in unfinished] or list(runs)
    place = last_common_look(counting)
    by_label: dict[str, list[Run]] = {}
    for run in runs:
        by_label.setdefault(run.label, [])
    for run in counting:
        by_label[run.label].append(run)
    found = [_standing(tuple(mine), place) for mine in by_label.values() if mine]
    found.sort(key=lambda standing: standing.median)
    medians = [standing.median for standing in found]
    return [
        standing
        if math.isinf(standing.median)
        else replace(standing, rank=1 + medians.index(standing.median))
        for standing in found
    ]


def last_common_look(runs: Sequence[Run]) -> int:
    """Return the place of the last point that all runs have which are still going on.

    -1, the last of each, where all are over, or where there is no such point after a step.
    """
    going = [run for run in runs if not run.end]
    if all(run.is_over for run in going):
        return -1
    looks = [[point for point in run.points if not point.is_out_of_turn] for run in going]
    place = min(map(len, looks)) - 1
    return place if place >= 0 and all(some[place].step for some in looks) else -1


def _standing(runs: tuple[Run, ...], place: int) -> Standing:
    values = [run.value_at(place) for run in runs]
    median = statistics.median(values)
    return Standing(runs[0].contender, runs, None, median, *interval_of(values), place)
