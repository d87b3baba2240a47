"""The tables of docs/migrating/: what is in them, and the runs by which they are checked.

Needs NumPy alone, so that it can be read where another library is installed and steprule is not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

PAGES = Path(__file__).parents[1] / "docs" / "migrating"
RECORDED = Path(__file__).parent / "reference" / "migrations"

#: What the letters in the tables' code stand for. They are far from the defaults, and eps is large,
#: so that where it stands can be seen.
LETTERS: dict[str, Any] = {
    "lr": 0.02,
    "b1": 0.9,
    "b2": 0.99,
    "b3": 0.995,
    "eps": 1e-3,
    "wd": 0.05,
    "m": 0.8,
    "rho": 0.9,
    "v": 0.3,
    "c": 2.0,
    "d": 0.7,
    "T": 90,
    "W": 10,
    "end": 0.001,
    "rate": 0.9,
    "every": 20,
}

STEPS = 30
#: Steps at which schedules are compared, the last ones past the end.
POINTS = range(110)


@dataclass(frozen=True)
class Row:
    """A row of a table: the other library's code, ours, and what the table says of the two."""

    page: str
    theirs: str
    ours: str
    #: "same numbers", "same values" (of schedules) or "not the same"
    claim: str
    #: the relative difference up to which numbers are the same
    tolerance: float

    @property
    def of_schedules(self) -> bool:
        """Whether the row is about schedules, and not about optimizers."""
        return self.claim == "same values"


_HEAD = re.compile(
    r"\| (?P<library>[^|]+) \| here, (?:the )?(?P<claim>same numbers|same values|not the same)"
    r"(?: within (?P<tolerance>1e-\d+))?"
)


def rows_of(page: str) -> Iterator[Row]:
    """The rows of a page whose tables' heads make a claim that can be checked."""
    claim, tolerance = "", 0.0
    for line in (PAGES / f"{page}.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            claim = ""
        elif head := _HEAD.match(line):
            claim, tolerance = head["claim"], float(head["tolerance"] or 0)
        elif claim and line.startswith("| `"):
            theirs, ours = (cell.strip() for cell in line.split(" | ")[:2])
            yield Row(page, theirs.strip("| `"), ours.strip("| `"), claim, tolerance)


def random_gradients(shapes: tuple[tuple[int, ...], ...]) -> Iterator[tuple[float, list[Any]]]:
    """For each step a factor, now small, now large, and an array of noise for each parameter."""
    generator = np.random.RandomState(1)
    for step in range(STEPS):
        noise = [generator.standard_normal(shape) for shape in shapes]
        yield 10.0 ** (step % 5 - 3), noise


SHAPES = ((5, 7), (3,))


def first_parameters() -> list[Any]:
    """The parameters before the first step, in float64."""
    generator = np.random.RandomState(0)
    return [generator.standard_normal(shape) for shape in SHAPES]


def trained(step: Callable[[list[Any]], list[Any]]) -> list[list[float]]:
    """Parameters after the run; ``step`` is given gradients, and returns the new parameters.

    The gradient depends on the parameter: an error in one step moves all that follow.
    """
    params = first_parameters()
    for scale, noise in random_gradients(SHAPES):
        params = step([scale * (n + p) for n, p in zip(noise, params, strict=True)])
    return [[float(x) for x in np.asarray(param).reshape(-1)] for param in params]
