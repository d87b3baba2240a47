"""The time of a step, for every optimizer on every set."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steprule.bench.contenders import makers_of, peers_of, stepping
from steprule.bench.results import Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief, times
from steprule.bench.timing import Make, Timed, interleaved

COPY = "copy"
OF_LIMIT = "of limit"


def _jobs(settings: Settings) -> Iterator[Job]:
    for which in settings.sets:
        for subject in settings.subjects:

            def run(which: ParamSet = which, subject: Subject = subject) -> list[Row]:
                return [measure(subject, which, settings)]

            yield Job(f"step: {which.name}, {subject.label}", run)


def measure(subject: Subject, which: ParamSet, settings: Settings) -> Row:
    """Return the row of one optimizer on one set."""

    def contenders() -> dict[str, Make]:
        params = which.parameters()
        makers = {mode: stepping(make, params) for mode, make in makers_of(subject).items()}
        makers |= peers_of(subject, which.name, params, settings)
        return makers | ({COPY: lambda: copying(which.elements)} if which.at_limit else {})

    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    copies = readings.pop(COPY, None)
    row = Row(which.name, subject.label, readings)
    if copies is None:
        return row
    # Read and written, both ways at the best that the memory gave in this run.
    bandwidth = 2 * 4 * which.elements / min(copies)
    limit = subject.step_bytes(which.elements) / bandwidth
    facts = {"copy GB/s": bandwidth / 1e9, "limit": limit, OF_LIMIT: row.median() / limit}
    return Row(which.name, subject.label, readings, facts, {COPY: copies})


def copying(elements: int) -> Timed:
    """Return a copy from memory to memory, by all of torch's threads."""
    source, target = torch.zeros(elements), torch.zeros(elements)
    return Timed(lambda: target.copy_(source))


STEPS = Table(
    name="steps",
    title="Time of a step",
    case="set",
    about=(
        "Parameters and gradients stay where they are from step to step. 'limit' is the time that "
        "the bytes of a step (parameter, gradient and state read, parameter and state written) "
        "take at the speed of the fastest copy_ of as many floats in the same run, bytes read and "
        "written both counted; 'of limit' is ours over it. A copy also reads what it overwrites, "
        "uncounted, so that less than 1 is possible."
    ),
    jobs=_jobs,
    write=brief,
    facts={
        "copy GB/s": lambda value: f"{value:.1f}",
        "limit": brief,
        OF_LIMIT: times,
    },
)
