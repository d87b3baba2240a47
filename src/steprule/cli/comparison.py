"""Comparison: all that a call of `steprule compare` has seen, and its JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steprule.cli.contenders import Contender
from steprule.cli.page import versions
from steprule.cli.runs import Run
from steprule.cli.standings import Standing, interval_name, standings_of
from steprule.cli.trials import Trial

RESULTS = "results.json"


@dataclass
class Comparison:
    """What was asked and what came of it.

    Attributes:
        subtitle: what was trained on, and for how long; parts are joined by semicolons.
        command: a command line that repeats it.
        conditions: seeds, threads and the like.
        seeds: how many each contender was to be trained with.
        contenders: who takes part, as they begin.
        notes: what a reader must know besides.
        trials: of the search, or the sweep over lr, by the contender's label.
        runs: a contender and a seed each, in the order they began.
        is_search: whether `trials` are a search's.
        settings: budget, batch size, seeds and the like, as data.
        stop: what ended it too early: "Ctrl-C", an error; or "".
    """

    subtitle: str
    command: str
    conditions: Mapping[str, str]
    seeds: int
    contenders: Sequence[Contender]
    notes: list[str] = field(default_factory=list)
    trials: dict[str, list[Trial]] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    is_search: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    stop: str = ""

    @property
    def is_partial(self) -> bool:
        """Whether it ended before all was done."""
        return bool(self.stop)

    @property
    def is_empty(self) -> bool:
        """Whether nothing was seen: no step and no trial."""
        stepped = any(run.step_seconds for run in self.runs)
        return not stepped and not any(self.trials.values())

    @property
    def standings(self) -> list[Standing]:
        """The contenders, the best first; those that took no step are not there."""
        return standings_of([run for run in self.runs if run.step_seconds or run.end])

    @property
    def seeds_that_count(self) -> int:
        """Over how many seeds medians and intervals are: those asked for, unless it is partial."""
        return max((len(one.runs) for one in self.standings), default=self.seeds)

    @property
    def figures(self) -> list[str]:
        """The names of the figures, the one that ranks first."""
        return next((list(run.points[-1].figures) for run in self.runs if run.points), ["loss"])

    def json(self, charts: Sequence[str]) -> str:
        """Return all of it as JSON, with the names of the charts; what isn't finite is null."""
        plain = {**self._plain(), "charts": list(charts)}
        return json.dumps(_finite(plain), indent=1, allow_nan=False) + "\n"

    def _plain(self) -> dict[str, Any]:
        return {
            "command": self.command,
            "problem": self.subtitle,
            "partial": self.is_partial,
            "stop": self.stop,
            "settings": dict(self.settings),
            "conditions": dict(self.conditions),
            "versions": dict(versions()),
            "notes": self.notes,
            "interval": interval_name(self.seeds_that_count),
            "standings": [
                {
                    "rank": one.rank,
                    "optimizer": one.label,
                    "median": one.median,
                    "low": one.low,
                    "high": one.high,
                    "runs": len(one.runs),
                    "broken_off": one.broken_off,
                    "instead_of_a_rank": one.instead_of_a_rank,
                }
                for one in self.standings
            ],
            "runs": [_plain_run(run) for run in self.runs],
            "trials": {
                label: [{**trial.options, "value": trial.value, "end": trial.end} for trial in some]
                for label, some in self.trials.items()
            },
        }


def _plain_run(run: Run) -> dict[str, Any]:
    return {
        "optimizer": run.label,
        "options": {key: _plain_value(value) for key, value in run.contender.options.items()},
        "wrappers": [
            {"name": wrap.__name__, "options": {k: _plain_value(v) for k, v in options.items()}}
            for wrap, options in run.contender.wrappers
        ],
        "seed": run.seed,
        "end": run.end or ("" if run.is_over else "interrupted"),
        "points": [
            {"step": point.step, "seconds": point.seconds, "figures": dict(point.figures)}
            for point in run.points
        ],
        "lr": run.rates,
        "batch_losses": run.batch_losses,
        "train_seconds": run.train_seconds,
        "step_seconds": run.step_seconds,
        "state_bytes": run.state_bytes,
        "engines": list(run.engines),
        "explain": run.plan,
    }


def _plain_value(value: Any) -> Any:
    return value if isinstance(value, (bool, int, float, str, type(None))) else str(value)


def _finite(value: Any) -> Any:
    """Return the same without numbers that JSON has not."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_finite(item) for item in value]
    return value
