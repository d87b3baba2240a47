"""The memory that a step needs beyond what was there before it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from steprule.bench.child import run_child
from steprule.bench.results import OURS, Row
from steprule.bench.settings import Settings
from steprule.bench.subjects import MODES, Subject
from steprule.bench.tables.table import Job, Table, megabytes

ELEMENTS = 50_000_000
TENSORS = 10
STEPS = 3


def _jobs(settings: Settings) -> Iterator[Job]:
    for subject in settings.subjects:

        def run(subject: Subject = subject) -> list[Row]:
            return [measure(subject, settings)]

        yield Job(f"memory: {subject.label}", run)


def measure(subject: Subject, settings: Settings) -> Row:
    """Return the row of one optimizer: extra bytes of each contender in a process of its own."""
    found = {OURS: _extra("steprule", subject, {}, settings)}
    for mode in subject.modes():
        found[mode] = _extra("torch.optim", subject, MODES[mode], settings)
    if not all(result["exact"] for result in found.values()):
        settings.say(
            "memory: this system does not let the peak be reset, so that readings are what the "
            "process's whole peak grew by, and may be too low."
        )
    readings = {name: result["extra"] for name, result in found.items()}
    row = Row(f"{ELEMENTS:,} floats", subject.label, readings)
    a_thread = {"ours a thread": row.median() / settings.threads}
    return Row(row.case, row.optimizer, readings, a_thread)


def _extra(module: str, subject: Subject, flags: Any, settings: Settings) -> dict[str, Any]:
    request = {
        "module": module,
        "name": subject.cls.__name__,
        "options": {**subject.options, **flags},
        "threads": settings.threads,
        "shapes": [ELEMENTS // TENSORS] * TENSORS,
        "steps": STEPS,
    }
    return run_child("peak_memory.py", request)


MEMORY = Table(
    name="memory",
    title="Extra memory during a step",
    case="size",
    about=(
        "Peak resident memory during a step less what was resident before it, each contender in a "
        "process of its own, after steps that made the state."
    ),
    jobs=_jobs,
    write=megabytes,
    facts={"ours a thread": megabytes},
    has_ratio=False,
)
