"""Time against size, on one thread and on several."""

from __future__ import annotations

from collections.abc import Iterator

from steprule.bench.contenders import makers_of, stepping
from steprule.bench.results import Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief
from steprule.bench.timing import Make, interleaved
from steprule.cli.surroundings import threads

SIZES = (*(size * 10**power for power in range(3, 8) for size in (1, 3)), 100_000_000)
TENSORS = 10
# Elements that make one reading of small sizes long enough for the clock.
A_READING = 1_000_000
MOST_REPEATS = 100
# The largest sizes fill gigabytes.
TRIALS = 2

FLOATS = "floats"
THREADS = "threads"


def _jobs(settings: Settings) -> Iterator[Job]:
    for subject in settings.few:
        for count in sorted({1, settings.threads}):
            for size in SIZES:

                def run(
                    subject: Subject = subject, count: int = count, size: int = size
                ) -> list[Row]:
                    return [measure(subject, size, count, settings)]

                yield Job(f"scaling: {subject.label}, {size:,} floats, threads {count}", run)


def measure(subject: Subject, size: int, count: int, settings: Settings) -> Row:
    """Return the row of one optimizer, size and number of threads."""
    repeats = max(1, min(MOST_REPEATS, A_READING // size))
    which = ParamSet(f"{size:,}", "", [(size // TENSORS,)] * TENSORS, repeats)

    def contenders() -> dict[str, Make]:
        params = which.parameters()
        return {name: stepping(make, params) for name, make in makers_of(subject).items()}

    with threads(count):
        readings = interleaved(
            contenders, rounds=settings.rounds, repeats=which.repeats, trials=TRIALS
        )
    case = f"{size:,} floats, {count} thread{'s' if count > 1 else ''}"
    return Row(case, subject.label, readings, {FLOATS: size, THREADS: count})


SCALING = Table(
    name="scaling",
    title="Time of a step against size and threads",
    case="size",
    about=f"As in the table of steps, with {TENSORS} tensors of one size.",
    jobs=_jobs,
    write=brief,
)
