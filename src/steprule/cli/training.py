"""Training: the article's network, taken through the same batches by every contender."""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from steprule.cli.contenders import Contender
from steprule.cli.data import Dataset
from steprule.cli.errors import CommandError

HIDDEN = 200
ROWS_AT_ONCE = 8192


@dataclass
class Run:
    """What was seen of one contender; the curves by epoch start before the first step."""

    contender: Contender
    losses: list[float] = field(default_factory=list)
    accuracies: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    state_bytes: int = 0
    plan: str = ""

    @property
    def label(self) -> str:
        """The contender's name as the user wrote it."""
        return self.contender.label

    @property
    def median_step(self) -> float:
        """Median seconds of a step, the first one apart: it compiles and allocates."""
        return statistics.median(self.step_seconds[1:] or self.step_seconds)

    @property
    def total_step(self) -> float:
        """Seconds in all steps, the first one included."""
        return sum(self.step_seconds)


def network(features: int, classes: int, seed: int) -> torch.nn.Module:
    """Return the article's network, features-200-classes with a ReLU, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return torch.nn.Sequential(
            torch.nn.Linear(features, HIDDEN),
            torch.nn.ReLU(),
            torch.nn.Linear(HIDDEN, classes),
        )


def train(
    contenders: Sequence[Contender],
    data: Dataset,
    *,
    epochs: int,
    batch_size: int,
    seed: int,
    on_step: Callable[[Run], None],
) -> list[Run]:
    """Train one copy of the network per contender, epoch by epoch in turn.

    Taking turns by epoch, not one after the other to the end, spreads a slow spell of the
    machine over all of them, so that their times compare.

    Args:
        contenders: who takes part; all start from the same weights and see the same batches.
        data: what to fit.
        epochs: passes over the training rows.
        batch_size: rows a step; the last batch of an epoch may be smaller.
        seed: of the weights and of the order of the rows.
        on_step: called after every step, and after each epoch's evaluation.
    """
    base = network(data.x.shape[1], data.classes, seed)
    trainers = [_Trainer(contender, copy.deepcopy(base), data) for contender in contenders]
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        batches = torch.split(torch.randperm(len(data.x), generator=order), batch_size)
        for trainer in trainers:
            for batch in batches:
                trainer.step(batch)
                on_step(trainer.run)
            trainer.evaluate()
            on_step(trainer.run)
    return [trainer.finish() for trainer in trainers]


class _Trainer:
    """One contender with its own copy of the network."""

    def __init__(self, contender: Contender, model: torch.nn.Module, data: Dataset) -> None:
        self.model = model
        self.data = data
        self.optimizer = contender.build(model)
        self.run = Run(contender)
        self.evaluate()

    def step(self, batch: torch.Tensor) -> None:
        x, y = self.data.x[batch], self.data.y[batch]
        seconds_outside = 0.0

        def closure() -> torch.Tensor:
            nonlocal seconds_outside
            start = time.perf_counter()
            self.optimizer.zero_grad()
            loss = cross_entropy(self.model(x), y)
            loss.backward()  # type: ignore[no-untyped-call]
            seconds_outside += time.perf_counter() - start
            return loss

        self.run.rates.append(_current_rate(self.optimizer))
        needs_closure = self.run.contender.needs_closure
        if not needs_closure:
            closure()
            seconds_outside = 0.0
        start = time.perf_counter()
        try:
            self.optimizer.step(closure if needs_closure else None)  # type: ignore[arg-type]
        except (RuntimeError, NotImplementedError) as error:
            raise CommandError(f"{self.run.label}: {error}") from error
        self.run.step_seconds.append(time.perf_counter() - start - seconds_outside)

    def evaluate(self) -> None:
        data = self.data
        loss, _ = _evaluate(self.model, data.x, data.y)
        _, accuracy = _evaluate(self.model, data.x_test, data.y_test)
        self.run.losses.append(loss)
        self.run.accuracies.append(accuracy)

    def finish(self) -> Run:
        self.run.state_bytes = state_bytes(self.optimizer)
        explain = getattr(self.optimizer, "explain", None)
        self.run.plan = str(explain()) if explain else ""
        return self.run


def _current_rate(optimizer: torch.optim.Optimizer) -> float:
    return float(optimizer.param_groups[0].get("lr", math.nan))


@torch.no_grad()
def _evaluate(model: torch.nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    loss = correct = 0.0
    for rows, labels in zip(
        torch.split(x, ROWS_AT_ONCE), torch.split(y, ROWS_AT_ONCE), strict=True
    ):
        scores = model(rows)
        loss += float(cross_entropy(scores, labels, reduction="sum"))
        correct += float((scores.argmax(dim=1) == labels).sum())
    return loss / len(x), correct / len(x)


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of every tensor in the optimizer's state, lists and tuples included."""
    return sum(tensor.nbytes for tensor in _tensors(optimizer.state.values()))


def _tensors(values: Iterable[Any]) -> Iterator[torch.Tensor]:
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            yield from _tensors(value.values())
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)
