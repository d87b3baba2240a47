"""Training: copies of one model, taken through the same batches by every contender."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from steprule.cli.budget import Budget, Pace
from steprule.cli.contenders import Contender
from steprule.cli.rate_schedule import RateSchedule
from steprule.cli.runs import Point, Run
from steprule.cli.turns import Turn, mixed, turns
from steprule.problems import Maker, Problem, ProblemError
from steprule.problems.batches import versions_of, with_own_containers
from steprule.problems.loading import seed_all, seeded
from steprule.wrappers import Lookahead

# A run has diverged when the mean of some losses in a row is so many times the first one.
DIVERGED = 50.0
IN_A_ROW = 8
# How often SophiaG's estimate of the curvature is renewed, as its authors do.
HESSIAN_EVERY = 10
# Steps that no clock counts: they compile, which the next one of the same kind need not do.
UNTIMED_STEPS = 1


@dataclass(frozen=True)
class Settings:
    """What all runs of a comparison have in common.

    Attributes:
        make: makes the problem for a seed.
        budget: when a run ends.
        batch_size: rows a step, where the data are rows.
        schedule: of the lr, or None.
    """

    make: Maker
    budget: Budget
    batch_size: int
    schedule: RateSchedule | None = None


def train(
    contenders: Sequence[Contender],
    settings: Settings,
    seed: int,
    *,
    runs: list[Run],
    on_step: Callable[[Run], None],
    goes_on: Callable[[Run], bool] | None = None,
) -> None:
    """Train one copy of the model per contender, in turns of some batches.

    Taking turns, not one after the other to the end, spreads a slow spell of the machine over all
    of them, so that their times compare. Each batch is loaded once and handed to everybody.

    Args:
        contenders: who takes part; all start from the same weights and see the same batches and,
            where the model draws random numbers (dropout), the same of these, in each evaluation of
            a batch anew.
        settings: what they train on, and for how long.
        seed: of all that is random.
        runs: the runs are added here before they begin, so that they are there if this is
            interrupted.
        on_step: called after every step.
        goes_on: asked at every point after the first; a run that is refused ends as pruned.
    """
    problem = settings.make(seed)
    batches = problem.batches(settings.batch_size, seed)
    pace = settings.budget.pace(batches, problem.evaluate is not None)
    factors = settings.schedule.factors(pace.steps) if settings.schedule else None
    with seeded(mixed(seed, 1)):
        trainers = [_Trainer(one, seed, problem, pace, factors) for one in contenders]
    runs += [trainer.run for trainer in trainers]
    try:
        for turn in turns(batches, seed):
            for trainer in trainers:
                if not trainer.run.is_over:
                    with seeded(seed):
                        trainer.take(turn, on_step, goes_on)
            if all(trainer.run.is_over for trainer in trainers):
                break
    except BaseException:
        going = [trainer for trainer in trainers if not trainer.run.end]
        common = min((trainer.whole_steps() for trainer in going), default=0)
        for trainer in going:
            trainer.look_once_more(common)
        raise
    finally:
        for trainer in trainers:
            trainer.close()


class _Trainer:
    """One contender with its own copy of the model."""

    def __init__(
        self,
        contender: Contender,
        seed: int,
        problem: Problem,
        pace: Pace,
        factors: list[float] | None,
    ) -> None:
        self.problem = problem
        self.pace = pace
        self.factors = factors
        self.model = problem.copy_of_model()
        if not self.model.training:  # as a whole; parts that are frozen in eval mode stay so
            self.model.train()
        self.optimizer = contender.build(self.model)
        self.base_rates = [group.get("lr") for group in self.optimizer.param_groups]
        self.run = Run(contender, seed)
        self.seconds = 0.0
        self.epochs = 0
        self.points = 0
        self.since = 0
        self.is_in_loss = False
        self._set_mode("train")
        if problem.evaluate is not None:
            self._look()

    def take(
        self, turn: Turn, on_step: Callable[[Run], None], goes_on: Callable[[Run], bool] | None
    ) -> None:
        """Go through the batches of a turn, or as many as there is budget for."""
        for batch in turn.batches:
            self._guarded_step(batch)
            self._advance(goes_on)
            on_step(self.run)
            if self.run.is_over:
                return
        if turn.ends_epoch:
            self.epochs += 1
            self._advance(goes_on)

    def whole_steps(self) -> int:
        """Return how many steps were taken to their ends."""
        self.run.drop_half_a_step()
        return len(self.run.step_seconds)

    def look_once_more(self, common: int) -> None:
        """Look at a run that was stopped, out of turn, if it has come further since the last look.

        Losses of batches are looked at up to the step that all have come to; a model is evaluated
        where it is. What stopped it is what the user is told: if looking fails as well, it is left
        alone.
        """
        steps = common if self.problem.evaluate is None else self.whole_steps()
        last = self.run.points[-1].step if self.run.points else 0
        if steps > last:
            with contextlib.suppress(Exception), seeded(self.run.seed):
                self._look(steps, is_out_of_turn=True)

    def close(self) -> None:
        """Note what only the end shows."""
        self.run.drop_half_a_step()
        self.run.state_bytes = state_bytes(self.optimizer)
        explain = getattr(self.optimizer, "explain", None)
        if explain is not None and self.run.step_seconds and not self.run.failure:
            explanation = explain()
            self.run.plan = str(explanation)
            rows = getattr(explanation, "rows", ())
            self.run.engines = tuple(dict.fromkeys(row.engine for row in rows))

    def _advance(self, goes_on: Callable[[Run], bool] | None) -> None:
        done = (len(self.run.step_seconds), self.seconds, self.epochs)
        self.run.share = self.pace.share(*done)
        passed = self.pace.passed(*done)
        if self.run.end == "diverged":
            self._look()
        if self.run.end or passed == self.points:
            return
        self.points = passed
        self._look()
        if not math.isfinite(self.run.points[-1].value):
            self.run.end = "diverged"
        elif goes_on is not None and self.run.share < 1 and not goes_on(self.run):
            self.run.end = "pruned"

    def _guarded_step(self, batch: Any) -> None:
        self.is_in_loss = False
        try:
            self.step(batch)
        except Exception as error:
            if self.is_in_loss:  # the user's own code: its traceback says more than a line
                raise
            self.run.end = f"{type(error).__name__}: {error}"

    def step(self, batch: Any) -> None:
        """Take one step, and note what it took."""
        losses: list[float] = []
        seconds_outside = seconds_apart = 0.0

        def closure() -> torch.Tensor:
            nonlocal seconds_outside, seconds_apart
            entered = _now(self.model)
            self.is_in_loss = True
            seed_all(mixed(self.run.seed, 2 * len(self.run.step_seconds) + 3))
            mine = with_own_containers(batch)
            versions = versions_of(mine)
            start = _now(self.model)
            self.optimizer.zero_grad()
            loss = self.problem.value(self.model, mine)
            loss.backward()  # type: ignore[no-untyped-call]
            losses.append(float(loss.detach()))
            end = _now(self.model)
            self._check_what_loss_did(versions, versions_of(batch))
            self.is_in_loss = False
            seconds_apart += (start - entered) + (_now(self.model) - end)
            seconds_outside += _now(self.model) - entered
            return loss

        run = self.run
        self._set_rates(len(run.step_seconds))
        rate = _current_rate(self.optimizer)
        begun = _now(self.model)
        if run.contender.needs_closure:
            # Closures are called with gradients on, whatever the optimizer does around them.
            self.optimizer.step(torch.enable_grad()(closure))  # type: ignore[arg-type]
            in_step = _now(self.model) - begun - seconds_outside
        else:
            closure()
            self._renew_curvature(len(run.step_seconds))
            start = _now(self.model)
            self.optimizer.step()
            in_step = _now(self.model) - start
        run.train_seconds.append(_now(self.model) - begun - seconds_apart)
        run.step_seconds.append(in_step)
        run.batch_losses.append(losses[0])
        run.rates.append(rate)
        if len(run.step_seconds) > UNTIMED_STEPS:
            self.seconds += run.train_seconds[-1]
        if self._has_diverged():
            run.end = "diverged"

    def _check_what_loss_did(self, before: list[int], after: list[int]) -> None:
        """Refuse a loss that changes what others get, or that is of another model."""
        if before != after:
            raise ProblemError(
                "loss changed its batch in place, which others train on as well: let it work on "
                "new tensors, as x = x / 255 for x.div_(255)"
            )
        if not self.run.step_seconds and all(p.grad is None for p in self.model.parameters()):
            raise ProblemError(
                "loss gives no parameter of the model it was called with a gradient: let it use "
                "its argument, not a model from outside"
            )

    def _set_rates(self, step: int) -> None:
        if self.factors is None:
            return
        factor = self.factors[min(step, len(self.factors) - 1)]
        for group, base in zip(self.optimizer.param_groups, self.base_rates, strict=True):
            if base is not None:
                group["lr"] = base * factor

    def _renew_curvature(self, step: int) -> None:
        update: Any = getattr(self.optimizer, "update_hessian", None)
        if update is not None and step % HESSIAN_EVERY == 0:
            update()

    def _has_diverged(self) -> bool:
        losses = self.run.batch_losses
        if not math.isfinite(losses[-1]):
            return True
        last = losses[-IN_A_ROW:]
        bound = DIVERGED * abs(losses[0])
        return len(last) == IN_A_ROW and 0 < bound < sum(last) / IN_A_ROW

    def _look(self, steps: int | None = None, is_out_of_turn: bool = False) -> None:
        run = self.run
        steps = len(run.batch_losses) if steps is None else steps
        seed_all(mixed(run.seed, 1))
        self._set_mode("eval")
        figures = self.problem.figures(self.model)
        self._set_mode("train")
        if not figures:
            since = run.batch_losses[self.since : steps]
            figures = {"loss": sum(since) / len(since)} if since else {"loss": math.nan}
        self.since = steps
        seconds = sum(run.train_seconds[UNTIMED_STEPS:steps])
        run.points.append(Point(steps, seconds, figures, is_out_of_turn))

    def _set_mode(self, mode: str) -> None:
        """Tell an optimizer that trains at other weights than it is judged by."""
        change = getattr(self.optimizer, mode, None)
        if change is not None:
            change()


def _now(model: torch.nn.Module) -> float:
    """Return the time, when all that was asked of a device is done."""
    if next(model.parameters()).is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter()


def _current_rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0].get("lr", math.nan))


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of every tensor in the optimizer's state, lists and tuples included."""
    if isinstance(optimizer, Lookahead):  # which keeps its weights elsewhere
        return int(optimizer.state_bytes())
    return sum(tensor.nbytes for tensor in _tensors(optimizer.state.values()))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
