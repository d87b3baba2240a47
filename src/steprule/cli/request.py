"""Request: what was asked of `steprule compare`."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steprule.cli.budget import Budget
from steprule.cli.contenders import Contender

EPOCHS = 20
STEPS_OF_OWN_PROBLEMS = 500


@dataclass(frozen=True)
class Request:
    """The options of the command, as typed but for the numbers, which are checked.

    Without `epochs`, `steps` and `seconds` runs take 20 epochs, or 500 steps of a problem of the
    user's own.
    """

    optimizers: str | None
    lr: tuple[str, ...]
    epochs: int | None
    batch_size: int
    seed: int
    threads: int
    engine: str
    data: Path | None
    report: Path
    problem: str | None = None
    steps: int | None = None
    seconds: float | None = None
    seeds: int = 1
    schedule: str | None = None
    search: int | None = None
    lr_sweep: int | None = None

    @property
    def budget(self) -> Budget:
        """What each run may take."""
        budget = Budget.of(self.epochs, self.steps, self.seconds)
        is_own = self.problem is not None
        return budget or (Budget(steps=STEPS_OF_OWN_PROBLEMS) if is_own else Budget(epochs=EPOCHS))

    @property
    def all_seeds(self) -> range:
        """The seeds of the runs that are ranked; a search has the next one."""
        return range(self.seed, self.seed + self.seeds)

    @property
    def settings(self) -> dict[str, Any]:
        """What was asked for, but for who takes part, as plain values."""
        budget = self.budget
        return {
            "epochs": budget.epochs,
            "steps": budget.steps,
            "seconds": budget.seconds,
            "batch_size": self.batch_size,
            "seeds": [*self.all_seeds],
            "schedule": self.schedule,
            "search": self.search,
            "lr_sweep": self.lr_sweep,
            "threads": self.threads,
        }

    def command(self, contenders: Sequence[Contender]) -> str:
        """Return a command line that repeats this comparison, defaults spelled out."""
        words = ["steprule", "compare"]
        if self.problem is not None:
            words.append(self.problem)
        words += ["--optimizers", ",".join(one.label for one in contenders)]
        for rate in self.lr:
            words += ["--lr", rate]
        words += [*self.budget.words(), "--batch-size", str(self.batch_size)]
        words += ["--seed", str(self.seed), "--seeds", str(self.seeds)]
        words += ["--threads", str(self.threads), "--engine", self.engine]
        for option, value in (
            ("--data", self.data),
            ("--schedule", self.schedule),
            ("--search", self.search),
            ("--lr-sweep", self.lr_sweep),
            ("--report", self.report),
        ):
            if value is not None:
                words += [option, str(value)]
        return shlex.join(words)
