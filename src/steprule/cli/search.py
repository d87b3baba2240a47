"""`--search`: lr and weight decay by Optuna, in a file that a later call goes on with."""

from __future__ import annotations

import hashlib
import inspect
import math
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from steprule.cli.contenders import Contender
from steprule.cli.errors import CommandError
from steprule.cli.runs import Run
from steprule.cli.training import Settings
from steprule.cli.trials import Trial, one_run

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
if TYPE_CHECKING:
    import optuna

STORAGE, LOCK = "search.db", ".search.lock"
SEARCHED = ("lr", "weight_decay")
# Around the lr that an optimizer starts from.
LOWEST, HIGHEST = 1 / 100, 30
# The lowest is as good as none.
WEIGHT_DECAYS = (1e-6, 0.3)
# Trials that are spread evenly over both ranges, before earlier ones decide.
SPREAD = 8
# Trials without pruning, and the share of a run before it may be pruned.
UNPRUNED_TRIALS = 4
UNPRUNED_SHARE = 0.25


def check_optuna() -> None:
    """Raise a CommandError where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise CommandError("--search needs Optuna: pip install '.[search]' in the checkout")


def searched(contender: Contender) -> list[str]:
    """Return the options that are searched over: not those that its name says."""
    return [name for name in SEARCHED if contender.takes(name) and name not in contender.fixed]


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
        points: how often a run is looked at.
        seed: of the weights and batches of every trial.

    Raises:
        CommandError: Optuna is not installed, the file is not one of its own, or another search
            is at work in the folder.
    """

    def __init__(
        self, folder: Path, trials: int, problem: str, settings: Settings, points: int, seed: int
    ) -> None:
        check_optuna()
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.path = folder / STORAGE
        self.trials = trials
        self.settings = settings
        self.points = points
        self.seed = seed
        self.about = [problem, str(settings.budget), f"batch {settings.batch_size}", f"seed {seed}"]
        if settings.schedule is not None:
            self.about.append(settings.schedule.text)
        self.lock = _locked(folder)
        try:
            self.storage = self._opened()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Search:
        return self

    def __exit__(self, *of_an_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others search in this folder."""
        self.lock.close()

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
        ranges = {"lr": (lr * LOWEST, lr * HIGHEST), "weight_decay": WEIGHT_DECAYS}
        ranges = {name: ranges[name] for name in searched(contender)}
        own = _own(contender)
        while (number := len(self._finished(study))) < self.trials:
            study.sampler = TPESampler(
                n_startup_trials=SPREAD, seed=(self.seed * 1009 + number) % 2**32
            )
            # The first is as the contender is, decays included that are in no range, such as 0.
            names = [n for n in ranges if number or ranges[n][0] <= own[n] <= ranges[n][1]]
            # One that waits was left by an interruption right here, and is the same.
            if number < SPREAD and not study.get_trials(states=(TrialState.WAITING,)):
                start = _spread(ranges, number) if number else own
                study.enqueue_trial({name: start[name] for name in names})
            trial = study.ask()
            options = {n: trial.suggest_float(n, *ranges[n], log=True) for n in names}
            trial.set_user_attr("options", {**own, **options})
            try:
                run = one_run(
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
        about = " | ".join([contender.label, *self.about, options])
        # Names have an end in the file: what is beyond it is in the digest.
        digest = hashlib.sha256(about.encode()).hexdigest()[:32]
        return optuna.create_study(
            storage=self.storage,
            study_name=f"{about[:300]} | {digest}",
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(
                n_startup_trials=UNPRUNED_TRIALS,
                n_warmup_steps=math.ceil(self.points * UNPRUNED_SHARE),
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


def _own(contender: Contender) -> dict[str, float]:
    """Return what a contender has of the options that may be searched over."""
    parameters = inspect.signature(contender.factory).parameters
    own: dict[str, float] = {"lr": contender.lr or 1.0} if contender.takes("lr") else {}
    if "weight_decay" in parameters:
        found = contender.options.get("weight_decay", parameters["weight_decay"].default)
        own["weight_decay"] = float(found) if isinstance(found, (int, float)) else 0.0
    return own


def _spread(ranges: Mapping[str, tuple[float, float]], number: int) -> dict[str, float]:
    """Return a point of a sequence that fills the plane evenly.

    Random points leave gaps where there are few. This is Roberts' R2 sequence: multiples of the
    powers of 1/1.3247..., whole numbers left out.
    """
    ratio = 1 / 1.32471795724474602596
    return {
        name: low * (high / low) ** (number * ratio ** (1 + SEARCHED.index(name)) % 1)
        for name, (low, high) in ranges.items()
    }


def _locked(folder: Path) -> IO[str]:
    """Return a file that is locked until it is closed.

    Raises:
        CommandError: another search has it.
    """
    file = (folder / LOCK).open("w")
    if fcntl is not None:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise CommandError(
                f"--search: another search is at work in {folder}; wait for it, or take another "
                "--report"
            ) from error
        except OSError:  # a file system that has no locks
            pass
    return file


def _pruning(trial: optuna.Trial) -> Callable[[Run], bool]:
    def goes_on(run: Run) -> bool:
        trial.report(run.points[-1].value, sum(point.step > 0 for point in run.points))
        return not trial.should_prune()

    return goes_on


def _trial_of(frozen: optuna.trial.FrozenTrial) -> Trial:
    from optuna.trial import TrialState

    if frozen.state is TrialState.PRUNED:
        last = frozen.last_step
        value = math.inf if last is None else frozen.intermediate_values[last]
    else:
        value = math.inf if frozen.value is None else frozen.value
    tried = frozen.user_attrs["options"]
    return Trial(
        tried["lr"],
        tried.get("weight_decay"),
        value,
        frozen.user_attrs.get("end", ""),
    )
