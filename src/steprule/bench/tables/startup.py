"""What the first step of a process costs, kernels on disk and not."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator, Sequence

from steprule.bench.child import run_child
from steprule.bench.results import OURS, Row
from steprule.bench.settings import Settings
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief

# A process takes seconds to import torch, and its readings spread little.
MOST_PROCESSES = 3
PARTS = ("import", "make", "first step")


def _jobs(settings: Settings) -> Iterator[Job]:
    for subject in settings.subjects:

        def run(subject: Subject = subject) -> list[Row]:
            return measure(subject, settings)

        yield Job(f"start of a process: {subject.label}", run)


def measure(subject: Subject, settings: Settings) -> list[Row]:
    """Return two rows of one optimizer: with an empty cache and with its kernels in it."""
    count = min(settings.rounds, MOST_PROCESSES)
    with tempfile.TemporaryDirectory() as folder:
        cold = [_reading("steprule", subject, settings.threads, folder)]
        warm = [_reading("steprule", subject, settings.threads, folder) for _ in range(count)]
        torchs = [_reading("torch.optim", subject, settings.threads, folder) for _ in range(count)]
    totals = [sum(parts) for parts in torchs]
    return [
        Row(
            case,
            subject.label,
            {OURS: [sum(parts) for parts in readings], "default": totals},
            {
                name: statistics.median(values)
                for name, values in zip(PARTS, zip(*readings, strict=True), strict=True)
            },
        )
        for case, readings in (("cold", cold), ("warm", warm))
    ]


def _reading(module: str, subject: Subject, threads: int, folder: str) -> Sequence[float]:
    request = {
        "module": module,
        "name": subject.cls.__name__,
        "options": dict(subject.options),
        "threads": threads,
    }
    found = run_child("first_step.py", request, {"STEPRULE_CACHE_DIR": folder})
    return [float(found[part]) for part in PARTS]


STARTUP = Table(
    name="startup",
    title="The start of a process: import, construction, first step",
    case="cache",
    about=(
        "Each reading is a process of its own that has imported torch before. 'cold' is one "
        "process with an empty kernel cache, 'warm' later ones with the same cache. 'default' is "
        "torch's class, constructed and stepped in the same way."
    ),
    jobs=_jobs,
    write=brief,
    facts=dict.fromkeys(PARTS, brief),
)
