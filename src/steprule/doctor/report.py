"""Findings as text and as JSON."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from steprule.doctor.finding import Finding, Level

MARKS = {Level.OK: " ", Level.NOTE: "*", Level.PROBLEM: "!"}
_WIDTH = 23  # of names: PYTORCH_CUDA_ALLOC_CONF


@dataclass(frozen=True)
class Report:
    """What was found; ``str()`` is the text that belongs in a bug report."""

    findings: tuple[Finding, ...]

    @property
    def is_broken(self) -> bool:
        """Whether there is a problem, rather than notes alone."""
        return any(finding.level is Level.PROBLEM for finding in self.findings)

    def __str__(self) -> str:
        return "\n".join([*lines_of(self.findings), *self.closing()])

    def closing(self) -> Iterator[str]:
        """Yield the last lines: what is wrong, and what to do."""
        yield ""
        for level, word in ((Level.PROBLEM, "problem"), (Level.NOTE, "note")):
            found = [finding for finding in self.findings if finding.level is level]
            if not found:
                yield f"no {word}s"
                continue
            yield f"{MARKS[level]} {len(found)} {word}{'s' * (len(found) > 1)}"
            for finding in found:
                advice = f": {finding.advice}" if finding.advice else ""
                yield f"    {finding.section}, {finding.name}{advice}"

    def as_json(self) -> dict[str, Any]:
        """Return the findings as plain values."""
        return {
            "is_broken": self.is_broken,
            "findings": [
                {
                    "section": finding.section,
                    "name": finding.name,
                    "value": finding.value,
                    "level": finding.level.value,
                    "advice": finding.advice,
                }
                for finding in self.findings
            ],
        }


def lines_of(findings: Iterable[Finding]) -> Iterator[str]:
    """Yield a line for each finding as it comes, and one for each section before it."""
    section = None
    for finding in findings:
        if finding.section != section:
            section = finding.section
            yield section
        value = " ".join(finding.value.split())
        yield f"{MARKS[finding.level]} {finding.name.ljust(_WIDTH)} {value}".rstrip()
