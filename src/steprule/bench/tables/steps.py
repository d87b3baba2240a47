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

PASSES = ("copy", "in place")


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
        return makers | (passes(which.elements) if which.at_limit else {})

    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    others = {name: readings.pop(name) for name in PASSES if name in readings}
    row = Row(which.name, subject.label, readings)
    facts: dict[str, float] = {}
    for name, seconds in others.items():
        # Read and written, at the best that the memory gave in this run.
        bandwidth = 2 * 4 * which.elements / min(seconds)
        limit = subject.step_bytes(which.elements) / bandwidth
        facts |= {
            f"{name} GB/s": bandwidth / 1e9,
            f"{name} limit": limit,
            f"of {name}": row.median() / limit,
        }
    return Row(which.name, subject.label, readings, facts, others)


def passes(elements: int) -> dict[str, Make]:
    """Return what shows the memory's speed: a copy, and a pass over one array in place."""

    def copying() -> Timed:
        source, target = torch.ones(elements), torch.ones(elements)
        return Timed(lambda: target.copy_(source))

    def in_place() -> Timed:
        values = torch.ones(elements)
        return Timed(lambda: values.mul_(1.0))

    return dict(zip(PASSES, (copying, in_place), strict=True))


STEPS = Table(
    name="steps",
    title="Time of a step",
    case="set",
    about=(
        "Parameters and gradients stay where they are from step to step. 'ratio' is torch's best "
        "mode over ours: above 1, ours is faster."
    ),
    about_facts=(
        "'of copy' and 'of in place' are our time over that which the bytes of a step take "
        "(parameter, gradient and state read, parameter and state written) at two speeds of the "
        "memory, each the best reading of the same run with as many floats, bytes read and written "
        "both counted: of a copy_, which also reads what it overwrites, uncounted, so that less "
        "than 1 is possible; and of a mul_ in place, which goes through memory as a step does."
    ),
    jobs=_jobs,
    write=brief,
    facts={
        head: write
        for name in PASSES
        for head, write in ((f"{name} GB/s", "{:.1f}".format), (f"of {name}", times))
    },
)
