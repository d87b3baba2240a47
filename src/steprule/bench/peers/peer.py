"""What a peer tells of itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch

from steprule.bench.subjects import Subject

StepOf = Callable[[Subject, list[torch.Tensor]], Callable[[], Any]]


@dataclass(frozen=True)
class Peer:
    """Another library's step of the same rules.

    Attributes:
        name: on the command line and in the tables.
        packages: what must be installed; import and package have the same name.
        install: how it gets there.
        comparable: what is the same as in our step, and what is not.
        takes: the optimizers it has, by label; None for all.
        most_tensors: with more, it takes minutes to compile.
        step_of: makes its step of a subject over parameters that have gradients. The first call
            may compile; an exception leaves the peer out of that case.
    """

    name: str
    packages: Sequence[str]
    install: str
    comparable: str
    takes: Sequence[str] | None
    most_tensors: int
    step_of: StepOf

    def missing(self) -> str:
        """Return a line that says what is not installed, or ""."""
        absent = [package for package in self.packages if find_spec(package) is None]
        if not absent:
            return ""
        return f"{self.name} is skipped: {', '.join(absent)} not installed ({self.install})."

    def unfit(self, subject: Subject, tensors: int) -> str:
        """Return why it cannot take such a step, or ""."""
        if self.takes is not None and subject.label not in self.takes:
            return f"it has no such optimizer ({subject.label})"
        if tensors > self.most_tensors:
            return f"there are more than {self.most_tensors:,} tensors: it compiles for minutes"
        return ""

    def versions(self) -> dict[str, str]:
        """Return the installed versions."""
        return {package: version(package) for package in self.packages}
