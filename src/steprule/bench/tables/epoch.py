"""One epoch of training: what a faster step is worth in a whole loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import torch
from torch.nn.functional import cross_entropy

from steprule.bench.results import OURS, Row
from steprule.bench.settings import Settings
from steprule.bench.subjects import Make as MakeOptimizer
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief, times
from steprule.bench.timing import Make, Timed, interleaved
from steprule.cli.data import load
from steprule.problems.classifier import network

BATCH_SIZE = 64
DEFAULT = "default"


def _jobs(settings: Settings) -> Iterator[Job]:
    for subject in settings.subjects:

        def run(subject: Subject = subject) -> list[Row]:
            return [measure(subject, settings)]

        yield Job(f"epoch: {subject.label}", run)


def measure(subject: Subject, settings: Settings) -> Row:
    """Return the row of one optimizer."""
    data = load(None)
    base = network(data.x.shape[1], data.classes, seed=0)
    pairs = zip(torch.split(data.x, BATCH_SIZE), torch.split(data.y, BATCH_SIZE), strict=True)
    batches = list(pairs)

    def training(make: MakeOptimizer) -> Make:
        def ready() -> Timed:
            model = copy.deepcopy(base)
            optimizer = make(list(model.parameters()))

            def epoch() -> None:
                for x, y in batches:
                    optimizer.zero_grad()
                    cross_entropy(model(x), y).backward()  # type: ignore[no-untyped-call]
                    optimizer.step()

            return Timed(epoch)

        return ready

    modes = subject.modes()
    modes.pop("loop")  # named in words below: it is what torch's default comes to

    def by_default(params: object) -> torch.optim.Optimizer:
        return subject.twin(params, **subject.options)

    makers = {OURS: subject.ours, DEFAULT: by_default, **modes}
    readings = interleaved(
        lambda: {name: training(make) for name, make in makers.items()}, rounds=settings.rounds
    )
    row = Row("digits", subject.label, readings)
    return Row(row.case, row.optimizer, readings, {"to default": row.ratio_to(DEFAULT) or 0.0})


EPOCH = Table(
    name="epoch",
    title="One training epoch, the whole loop",
    case="data",
    about=(
        "The article's network (features-200-classes) on scikit-learn's digits in batches of "
        f"{BATCH_SIZE}: zero_grad, forward, backward, step. 'default' is torch's class with no "
        "flags, which on the CPU is its loop; 'to default' is its median over ours."
    ),
    jobs=_jobs,
    write=brief,
    facts={"to default": times},
)
