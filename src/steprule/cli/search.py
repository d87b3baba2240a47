"""`--search` and `--lr-sweep`: the same training with other learning rates and weight decays."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from steprule.cli.contenders import Contender
from steprule.cli.errors import CommandError
from steprule.cli.runs import Run
from steprule.cli.training import Settings, train

if TYPE_CHECKING:
    import optuna

STORAGE = "search.db"
# Around the lr that an optimizer starts from.
LOWEST, HIGHEST = 1 / 100, 30
SWEPT = 30
# The lowest is as good as none.
WEIGHT_DECAYS = (1e-6, 0.3)
# Trials that are spread evenly over both ranges, before earlier ones decide.
SPREAD = 8
# Trials without pruning, and the share of a run before it may be pruned.
UNPRUNED_TRIALS = 4
UNPRUNED_SHARE = 0.25


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


def sweep_rates(lr: float, count: int) -> list[float]:
    """Return `count` learning rates at equal ratios, from a thirtieth of `lr` to thirty of it."""
    if count == 1:
        return [lr]
    return [float(rate) for rate in np.geomspace(lr / SWEPT, lr * SWEPT, count)]


def sweep(
    contender: Contender,
    settings: Settings,
    seed: int,
    count: int,
    *,
    trials: list[Trial],
    on_step: Callable[[Run], None],
) -> None:
    """Train with several learning rates, one after the other; what is done goes to `trials`."""
    for rate in sweep_rates(contender.lr or 1.0, count):
        run = _one(contender.having(lr=rate), settings, seed, on_step, None)
        trials.append(Trial(rate, None, run.value, run.end))


class Search:
    """Optuna's search over lr and weight decay, kept in a file so that it can go on.

    The trials of an optimizer are a study of their own, named by everything that they depend on
    but the problem's own code. A trial is drawn by a seed of its own, so that a search which was
    interrupted goes on exactly as it would have.

    Args:
        folder: where the SQLite file lies, or will.
        trials: how many each optimizer is to have; those in the file count.
        problem: the problem's name.
        settings: what all runs have in common.
        seed: of the weights and batches of every trial.

    Raises:
        CommandError: Optuna is not installed, or the file is not one of its own.
    """

    def __init__(
        self, folder: Path, trials: int, problem: str, settings: Settings, seed: int
    ) -> None:
        if find_spec("optuna") is None:
            raise CommandError("--search needs Optuna: pip install 'steprule[search]'")
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.path = folder / STORAGE
        self.trials = trials
        self.settings = settings
        self.seed = seed
        self.about = [problem, str(settings.budget), f"batch {settings.batch_size}", f"seed {seed}"]
        if settings.schedule is not None:
            self.about.append(settings.schedule.text)
        self.storage = self._opened()

    def left(self, contender: Contender) -> int:
        """Return how many trials are still to be made."""
        return max(self.trials - len(self.done(contender)), 0)

    def done(self, contender: Contender) -> list[Trial]:
        """Return the trials that are in the file."""
        return [_trial_of(frozen) for frozen in self._finished(self._study(contender))]

    def run(self, contender: Contender, on_step: Callable[[Run], None]) -> None:
        """Make the trials that are missing."""
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        study = self._study(contender)
        lr = contender.lr or 1.0
        while (number := len(self._finished(study))) < self.trials:
            study.sampler = TPESampler(
                n_startup_trials=SPREAD, seed=(self.seed * 1009 + number) % 2**32
            )
            if number < SPREAD:
                spread = _spread(lr, number)
                study.enqueue_trial(spread if _has_decay(contender) else {"lr": spread["lr"]})
            trial = study.ask()
            options = {"lr": trial.suggest_float("lr", lr * LOWEST, lr * HIGHEST, log=True)}
            if _has_decay(contender):
                options["weight_decay"] = trial.suggest_float(
                    "weight_decay", *WEIGHT_DECAYS, log=True
                )
            try:
                run = _one(
                    contender.having(**options), self.settings, self.seed, on_step, _pruning(trial)
                )
            except BaseException:
                study.tell(trial, state=TrialState.FAIL)
                raise
            trial.set_user_attr("end", run.end)
            if run.end == "pruned":
                study.tell(trial, state=TrialState.PRUNED)
            else:
                study.tell(trial, run.value)

    def _study(self, contender: Contender) -> optuna.Study:
        import optuna

        options = ", ".join(f"{key}={value}" for key, value in sorted(contender.options.items()))
        points = self.settings.budget.epochs or 20
        return optuna.create_study(
            storage=self.storage,
            study_name=" | ".join([contender.label, *self.about, options])[:500],
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=UNPRUNED_TRIALS,
                n_warmup_steps=math.ceil(points * UNPRUNED_SHARE),
            ),
        )

    def _finished(self, study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
        """Return what counts: an interrupted trial doesn't."""
        from optuna.trial import TrialState

        states = (TrialState.COMPLETE, TrialState.PRUNED)
        return study.get_trials(deepcopy=False, states=states)

    def _opened(self) -> Any:
        import optuna
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return optuna.storages.RDBStorage(f"sqlite:///{self.path.resolve()}")
        except (SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
            first = str(error).split("\n")[0]
            raise CommandError(
                f"--search: {self.path} can't be used ({first}); delete it or take another --report"
            ) from error


def _spread(lr: float, number: int) -> dict[str, float]:
    """Return the first point, the defaults, or one of a sequence that fills the plane evenly.

    Random points leave gaps where there are few. This is Roberts' R2 sequence: multiples of the
    powers of 1/1.3247..., whole numbers left out.
    """
    if not number:
        return {"lr": lr, "weight_decay": WEIGHT_DECAYS[0]}
    ratio = 1 / 1.32471795724474602596
    low, high = WEIGHT_DECAYS
    return {
        "lr": lr * LOWEST * (HIGHEST / LOWEST) ** (number * ratio % 1),
        "weight_decay": low * (high / low) ** (number * ratio**2 % 1),
    }


def _has_decay(contender: Contender) -> bool:
    return contender.takes("weight_decay")


def _one(
    contender: Contender,
    settings: Settings,
    seed: int,
    on_step: Callable[[Run], None],
    goes_on: Callable[[Run], bool] | None,
) -> Run:
    runs: list[Run] = []
    train([contender], settings, seed, runs=runs, on_step=on_step, goes_on=goes_on)
    return runs[0]


def _pruning(trial: optuna.Trial) -> Callable[[Run], bool]:
    def goes_on(run: Run) -> bool:
        trial.report(run.points[-1].value, len(run.points))
        return not trial.should_prune()

    return goes_on


def _trial_of(frozen: optuna.trial.FrozenTrial) -> Trial:
    from optuna.trial import TrialState

    if frozen.state is TrialState.PRUNED:
        last = frozen.last_step
        value = math.inf if last is None else frozen.intermediate_values[last]
    else:
        value = math.inf if frozen.value is None else frozen.value
    return Trial(
        frozen.params["lr"],
        frozen.params.get("weight_decay"),
        value,
        frozen.user_attrs.get("end", ""),
    )
