"""The time of a step of the optimizers for matrices, on matrices such as models have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from steprule.bench.contenders import stepping
from steprule.bench.results import OURS, Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief
from steprule.bench.timing import Make, interleaved
from steprule.language.rule import Rule
from steprule.rules import OPTIMIZERS

SETS = (
    ParamSet(
        "12 layers of width 256",
        "48 of 256x256, 12 of 1024x256, 12 of 256x1024",
        [(256, 256)] * 48 + [(1024, 256)] * 12 + [(256, 1024)] * 12,
        1,
    ),
    ParamSet("200 of 64x64", "200 of 64x64", [(64, 64)] * 200, 1),
    ParamSet("4 of 1024x1024", "4 of 1024x1024", [(1024, 1024)] * 4, 1),
    ParamSet("2 of 1024x4096", "2 of 1024x4096", [(1024, 4096)] * 2, 1),
)
# Options of ours alone that change what a step computes.
VARIANTS: Mapping[str, Mapping[str, Any]] = {"muon": {"ns_method": "auto"}}


def subjects() -> list[Subject]:
    """Return the optimizers for which rows and columns matter and that torch has as well."""
    found = []
    for name, cls in OPTIMIZERS.items():
        twin = getattr(torch.optim, cls.__name__, None)
        if cls.rule is not None and twin is not None and _is_of_matrices(cls.rule):
            found.append(Subject(name, cls, twin))
    return found


def _is_of_matrices(rule: Rule) -> bool:
    has_axes = any(slot.shape in ("row", "column") for slot in rule.slots.values())
    return has_axes or not rule.elementwise


def _jobs(settings: Settings) -> Iterator[Job]:
    for which in SETS:
        for subject in subjects():
            for options in ({}, VARIANTS.get(subject.label)):
                if options is None:
                    continue

                def run(
                    which: ParamSet = which,
                    subject: Subject = subject,
                    options: Mapping[str, Any] = options,
                ) -> list[Row]:
                    return [measure(subject, which, options, settings)]

                yield Job(f"matrices: {which.name}, {_label(subject, options)}", run)


def _label(subject: Subject, options: Mapping[str, Any]) -> str:
    return ", ".join([subject.label, *(f"{key}={value}" for key, value in options.items())])


def measure(
    subject: Subject, which: ParamSet, options: Mapping[str, Any], settings: Settings
) -> Row:
    """Return the row of one optimizer on one set; torch's has not these options."""

    def contenders() -> dict[str, Make]:
        params = which.parameters()
        modes = subject.modes() or {"default": subject.twin}  # without flags there is but one
        makers = {OURS: lambda given: subject.cls(given, **options), **modes}
        return {mode: stepping(make, params) for mode, make in makers.items()}

    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    return Row(which.name, _label(subject, options), readings)


MATRICES = Table(
    name="matrices",
    title="Time of a step on matrices",
    case="set",
    about="The sets are this table's own; torch's class has no ns_method.",
    jobs=_jobs,
    write=brief,
)
