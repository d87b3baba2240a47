"""What docs/migrating/ says of other libraries: their code and ours, side by side.

Torch's code is run; what other libraries made of theirs was recorded by
reference/make_migrations.py, from the same pages.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from functools import cache
from math import pi, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from migration_tables import (
    LETTERS,
    PAGES,
    POINTS,
    RECORDED,
    Row,
    first_parameters,
    rows_of,
    trained,
)

import steprule
from steprule import schedules

LIBRARIES = sorted(page.stem for page in PAGES.glob("*.md"))
ROWS = [row for library in LIBRARIES for row in rows_of(library)]
#: The runs' dtype is float64, but for libraries that compute in float32 whatever they are given.
DTYPES = {"bitsandbytes": torch.float32}
#: 30 steps, each of a dozen roundings of 1e-16 (6e-8) of numbers about 1; an error in one step
#: moves those that follow. Where a table's head says "within", the head counts.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}


def named(row: Row) -> str:
    return f"{row.page}: {row.theirs}"


@cache
def recorded(page: str) -> dict[str, Any]:
    made: dict[str, Any] = json.loads((RECORDED / f"{page}.json").read_text(encoding="utf-8"))
    return made


@cache
def defined_on(page: str) -> dict[str, Any]:
    """What the page's own Python defines, for its tables to use."""
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": page}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, names)
    return names


def run(page: str, code: str, dtype: torch.dtype) -> list[list[float]]:
    """Parameters after the run of a line of code that makes an optimizer of ``params``."""
    params = [torch.tensor(param, dtype=dtype, requires_grad=True) for param in first_parameters()]
    names = {"optim": steprule, "torch": torch, "params": params, "pi": pi, "sqrt": sqrt}
    optimizer = eval(code, {**defined_on(page), **vars(schedules), **names, **LETTERS})

    def step(grads: list[Any]) -> list[Any]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
        return [param.detach().double().numpy() for param in params]

    return trained(step)


def close(ours: Iterable[Any], theirs: Iterable[Any], tolerance: float) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(np.allclose(one, other, rtol=tolerance, atol=tolerance) for one, other in pairs)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.of_schedules], ids=named)
def test_a_row_of_optimizers_holds(row: Row) -> None:
    dtype = DTYPES.get(row.page, torch.float64)
    is_live = row.page == "torch"
    theirs = run(row.page, row.theirs, dtype) if is_live else recorded(row.page)[row.theirs]
    ours = run(row.page, row.ours, dtype)
    if row.claim == "not the same":
        # Far from what rounding, or a clip factor's 1e-6, could make.
        assert not close(ours, theirs, 1e-3)
    else:
        assert close(ours, theirs, row.tolerance or TOLERANCES[dtype])


@pytest.mark.parametrize("row", [row for row in ROWS if row.of_schedules], ids=named)
def test_a_row_of_schedules_holds(row: Row) -> None:
    names = {**vars(schedules), **LETTERS, "pi": pi, "sqrt": sqrt}
    ours = eval(row.ours, names)(list(POINTS))
    theirs = recorded(row.page)[row.theirs]
    tolerance = row.tolerance or 1e-9  # a schedule that ends at 0 ends there within rounding of lr
    assert np.allclose(ours, theirs, rtol=tolerance, atol=tolerance * LETTERS["lr"])


@pytest.mark.parametrize("library", [page.stem for page in sorted(RECORDED.glob("*.json"))])
def test_what_was_recorded_is_what_the_page_shows(library: str) -> None:
    """No more and no less; else make_migrations.py is to be run anew."""
    shown = {row.theirs for row in rows_of(library)}
    assert shown == set(recorded(library)) - {"made_with"}


def test_each_page_has_tables_that_are_checked() -> None:
    assert {row.page for row in ROWS} == set(LIBRARIES)
