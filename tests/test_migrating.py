"""What docs/migrating/ says of other libraries: their code and ours, side by side.

Torch's code is run; what other libraries made of theirs was recorded by
reference/make_migrations.py, from the same pages.
"""

from __future__ import annotations

import ast
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


def run(row: Row, code: str, dtype: torch.dtype) -> list[list[float]]:
    """Parameters after the run of a line of code that makes an optimizer of ``params``.

    Of the page on torch the state as well, for ASGD's average is nowhere else.
    """
    params = [torch.tensor(param, dtype=dtype, requires_grad=True) for param in first_parameters()]
    names = {"optim": steprule, "torch": torch, "params": params, "pi": pi, "sqrt": sqrt}
    optimizer: Any = eval(code, {**defined_on(row.page), **vars(schedules), **names, **LETTERS})

    def step(grads: list[Any]) -> list[Any]:
        for param, grad in zip(params, grads, strict=True):
            param.grad = torch.tensor(grad, dtype=dtype)
        optimizer.step()
        return [param.detach().double().numpy() for param in params]

    def change_lr(lr: float) -> None:
        optimizer.param_groups[0]["lr"] = lr

    found = trained(step, change_lr if row.lr_changes else None)
    if row.page == "torch":
        for entry in optimizer.state.values():
            found += [entry[key].reshape(-1).tolist() for key in sorted(entry)]
    return found


def close(ours: Iterable[Any], theirs: Iterable[Any], tolerance: float) -> bool:
    pairs = zip(ours, theirs, strict=True)
    return all(np.allclose(one, other, rtol=tolerance, atol=tolerance) for one, other in pairs)


@pytest.mark.parametrize("row", [row for row in ROWS if not row.of_schedules], ids=named)
def test_a_row_of_optimizers_holds(row: Row) -> None:
    dtype = DTYPES.get(row.page, torch.float64)
    is_live = row.page == "torch"
    theirs = run(row, row.theirs, dtype) if is_live else recorded(row.page)[row.theirs]
    ours = run(row, row.ours, dtype)
    if row.claim == "not the same":
        # Far from what rounding, or a clip factor's 1e-6, could make.
        assert not close(ours, theirs, 1e-3)
    else:
        assert close(ours, theirs, row.tolerance or TOLERANCES[dtype])


#: Arguments that say what holds without them, and why a row has them.
NEEDLESS = {"optim.RAdam(params, lr=lr, betas=(b1, b2), eps=0)": ["eps"]}  # 1e-8 is as good as 0


@pytest.mark.parametrize("library", LIBRARIES)
def test_no_argument_of_a_row_can_be_left_out(library: str) -> None:
    """Else the run would not see what the argument does, and the row would hold by chance."""
    dtype = DTYPES.get(library, torch.float64)
    for row in rows_of(library):
        if row.claim != "same numbers":
            continue
        theirs = (
            run(row, row.theirs, dtype) if library == "torch" else recorded(library)[row.theirs]
        )
        call = ast.parse(row.ours, mode="eval").body
        assert isinstance(call, ast.Call)
        idle = []
        for left_out in call.keywords:
            rest = [keyword for keyword in call.keywords if keyword is not left_out]
            code = ast.unparse(ast.Call(call.func, call.args, rest))
            try:
                ours = run(row, code, dtype)
            except ValueError:  # Nesterov's without a momentum
                continue
            if [*map(len, ours)] == [*map(len, theirs)] and close(
                ours, theirs, row.tolerance or TOLERANCES[dtype]
            ):
                idle.append(left_out.arg)
        assert idle == NEEDLESS.get(row.ours, []), named(row)


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
