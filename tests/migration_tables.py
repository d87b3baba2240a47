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

#: What the letters in the tables' code stand for. None is a default of any library's, so that an
#: argument that is left out shows; eps is large, so that where it stands does.
LETTERS: dict[str, Any] = {
    "lr": 0.02,
    "b1": 0.85,
    "b2": 0.97,
    "b3": 0.994,
    "eps": 2e-3,
    "wd": 0.05,
    "m": 0.8,
    "rho": 0.7,
    "v": 0.3,
    "c": 2.0,
    "d": 0.7,
    "N": 200,
    "T": 90,
    "W": 10,
    "end": 0.001,
    "rate": 0.9,
    "every": 20,
}

STEPS = 30
#: The step from which on the lr is another one, where a table does not say "while lr stays".
LR_CHANGES_AT, LATER_LR = 15, 0.3 * LETTERS["lr"]
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
    #: whether lr is another one from the middle of the run on
    lr_changes: bool

    @property
    def of_schedules(self) -> bool:
        """Whether the row is about schedules, and not about optimizers."""
        return self.claim == "same values"


_HEAD = re.compile(
    r"\| (?P<library>[^|]+) \| here, (?:the )?(?P<claim>same numbers|same values|not the same)"
    r"(?P<stays> while lr stays)?(?: within (?P<tolerance>1e-\d+))?"
)


def rows_of(page: str) -> Iterator[Row]:
    """The rows of a page whose tables' heads make a claim that can be checked."""
    claim, tolerance, lr_changes = "", 0.0, True
    for line in (PAGES / f"{page}.md").read_text(encoding="utf-8").splitlines():
        if not line.startswith("|"):
            claim = ""
        elif head := _HEAD.match(line):
            claim, tolerance = head["claim"], float(head["tolerance"] or 0)
            lr_changes = not head["stays"]
        elif claim and line.startswith("| `"):
            theirs, ours = (cell.strip() for cell in line.split(" | ")[:2])
            yield Row(page, theirs.strip("| `"), ours.strip("| `"), claim, tolerance, lr_changes)


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


def trained(
    step: Callable[[list[Any]], list[Any]], change_lr: Callable[[float], object] | None
) -> list[list[float]]:
    """Parameters after the run; ``step`` is given gradients, and returns the new parameters.

    The gradient depends on the parameter: an error in one step moves all that follow.
    ``change_lr``, unless it is None, is given the lr of the run's second half, before it begins.
    """
    params = first_parameters()
    for number, (scale, noise) in enumerate(random_gradients(SHAPES)):
        if number == LR_CHANGES_AT and change_lr is not None:
            change_lr(LATER_LR)
        params = step([scale * (n + p) for n, p in zip(noise, params, strict=True)])
    return [[float(x) for x in np.asarray(param).reshape(-1)] for param in params]
