"""Trials: runs with other learning rates and weight decays, which are not ranked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from steprule.cli.contenders import Contender
from steprule.cli.errors import CommandError
from steprule.cli.runs import Run
from steprule.cli.training import Settings, train

# Of weights and batches. It is none of the ranked runs' seeds, so that what ranks is not what was
# chosen by, and the same for any number of these, so that trials in a file stay good.
SEED = 987_654_321


def seed_of_trials(ranked: range) -> int:
    """Return the seed of all trials: none of those of the ranked runs."""
    return ranked.stop if SEED in ranked else SEED


@dataclass(frozen=True)
class Trial:
    """One run of a search.

    Attributes:
        lr: what was tried.
        weight_decay: what was tried; None where it was left alone.
        value: the figure that ranks, at the last point; infinite where the run broke off.
        end: "" where the budget was spent, "pruned", "diverged" or what failed.
    """

    lr: float
    weight_decay: float | None
    value: float
    end: str = ""

    @property
    def options(self) -> dict[str, float]:
        """What was tried, as options."""
        decay = {} if self.weight_decay is None else {"weight_decay": self.weight_decay}
        return {"lr": self.lr, **decay}


def best_of(trials: Sequence[Trial]) -> Trial | None:
    """Return the best of the trials that went on to the end; None if there is none."""
    whole = [trial for trial in trials if not trial.end and math.isfinite(trial.value)]
    return min(whole, key=lambda trial: trial.value) if whole else None


def check_start(contenders: Sequence[Contender], option: str) -> None:
    """Refuse to look around an lr of 0.

    Raises:
        CommandError: the message names `option` and the optimizer.
    """
    for one in contenders:
        if one.lr == 0:
            raise CommandError(f"{option}: {one.label} starts at lr 0, around which nothing lies")


def one_run(
    contender: Contender,
    settings: Settings,
    seed: int,
    on_step: Callable[[Run], None],
    goes_on: Callable[[Run], bool] | None,
) -> Run:
    """Train one contender by itself."""
    runs: list[Run] = []
    train([contender], settings, seed, runs=runs, on_step=on_step, goes_on=goes_on)
    return runs[0]
