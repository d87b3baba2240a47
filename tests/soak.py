"""A soak: for as long as is asked, any order of actions on several optimizers, compared with torch.

``script/soak --minutes 20`` runs it; it is not part of the tests, whose short form is
``test_memory_safety.py``. Every minute it says how many steps were compared and how much memory the
process has; it fails where a step differs, or where memory has grown since all optimizers were
seen by more than a few MB of what the interpreter keeps for itself.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import random
import sys
import time
from pathlib import Path

import torch
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import run_state_machine_as_test
from memory_machine import MemoryMachine, Subject
from test_memory_safety import SUBJECTS

import steprule

# float64, where a sign that decides (Rprop) or a square root near 0 could not follow float32's.
_MORE = [
    ("AdamW", {"lr": 0.01, "weight_decay": 0.1}, torch.float32),
    ("Adamax", {"lr": 0.01}, torch.float32),
    ("RAdam", {"lr": 0.01}, torch.float32),
    ("Adagrad", {"lr": 0.05}, torch.float32),
    ("Adadelta", {"lr": 0.5}, torch.float64),
    ("ASGD", {"lr": 0.05}, torch.float64),
    ("Rprop", {"lr": 0.01}, torch.float64),
]
GROWTH = 64 << 20


def subjects() -> list[Subject]:
    more = [
        Subject(getattr(steprule, name), getattr(torch.optim, name), options, dtype)
        for name, options, dtype in _MORE
    ]
    return [*SUBJECTS, *more]


def resident_bytes() -> int:
    """The memory of this process that is no file's."""
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


class Counted(MemoryMachine):
    """The machine, its steps counted."""

    steps = 0

    def _compare(self) -> None:
        super()._compare()
        Counted.steps += 1


def run_once(subject: Subject, number: int) -> None:
    chosen = settings(
        max_examples=8,
        stateful_step_count=60,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(seed(number)(lambda: Counted(subject)), settings=chosen)
    gc.collect()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    given = parser.parse_args()
    print(f"seed {given.seed}, {given.minutes:g} minutes, torch {torch.__version__}", flush=True)
    begin = told = time.monotonic()
    first = None
    everyone = subjects()
    for number, subject in enumerate(itertools.cycle(everyone)):
        run_once(subject, given.seed + number)
        now = time.monotonic()
        if number + 1 == 2 * len(everyone):
            first = resident_bytes()
        if now - told > 60 or now - begin > 60 * given.minutes:
            told = now
            print(
                f"{(now - begin) / 60:5.1f} min: {Counted.steps} steps of {len(everyone)} "
                f"optimizers compared, {resident_bytes() >> 20} MiB",
                flush=True,
            )
        if now - begin > 60 * given.minutes:
            break
    if first is None:
        print("too short to see whether memory grows")
        return 0
    growth = resident_bytes() - first
    print(f"memory grew by {growth / 2**20:.1f} MiB since each had been seen twice")
    return int(growth > GROWTH)


if __name__ == "__main__":
    sys.exit(main())
