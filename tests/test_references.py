"""Optimizers that torch has not, beside numbers of other implementations (reference/ made them)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENGINES, engines_of, has_reductions
from reference_runs import OTHER_SHAPES, RUNS, SHAPES, groups_of, trained
from torch.testing._internal.common_optimizers import optim_db

from steprule.rules import OPTIMIZERS

TRAJECTORIES = Path(__file__).parent / "reference" / "trajectories"


def name_of(run: str) -> str:
    return run.partition("+")[0]


def engines_for(name: str) -> tuple[str, ...]:
    """What is interpreted here leaves the CPU's bits (test_triton.py): rules in passes only."""
    has_kernel = "fused" in engines_of(name)
    return ENGINES if has_kernel and has_reductions(name) else engines_of(name)


@pytest.mark.parametrize(
    ("run", "engine"), [(run, engine) for run in RUNS for engine in engines_for(name_of(run))]
)
def test_fifty_steps_are_those_of_another_implementation(run: str, engine: str) -> None:
    name = name_of(run)
    cls = OPTIMIZERS[name.lower()]

    def make(params: list[torch.Tensor], **options: Any) -> Any:
        return cls(groups_of(name, params), engine=engine, **options)

    params = trained(make, RUNS[run], shapes=OTHER_SHAPES.get(name, SHAPES))
    expected_params = json.loads((TRAJECTORIES / f"{run}.json").read_text())["params"]
    for param, expected in zip(params, expected_params, strict=True):
        # 50 steps of a few dozen roundings in float64; an error in one step moves the next.
        other = torch.tensor(expected, dtype=torch.float64).reshape(param.shape)
        torch.testing.assert_close(param, other, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", dict.fromkeys(map(name_of, RUNS)))
def test_a_parameter_of_zeros_moves(name: str) -> None:
    """Where a norm is 0 the step is the plain one."""
    param = torch.zeros(4, requires_grad=True)
    optimizer = OPTIMIZERS[name.lower()]([param], lr=0.1)
    for _ in range(2):  # ADOPT's first one starts its second moment
        param.grad = torch.ones(4)
        optimizer.step()
    assert param.isfinite().all()
    assert (param < 0).all()
    param.grad = torch.zeros(4)
    optimizer.step()
    assert param.isfinite().all()


def test_whatever_torch_has_not_is_compared() -> None:
    """By the classes that the newest torch has; an older one may lack some of them."""
    torchs = {"Adafactor", "Muon", *(info.optim_cls.__name__ for info in optim_db)}
    ours = {cls.__name__ for cls in OPTIMIZERS.values()}
    assert ours - torchs <= {name_of(run) for run in RUNS}
