"""``torch.distributed.checkpoint`` with our optimizers: asked for state, saved, loaded anywhere."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import has_reductions, recording_of
from processes import ranks
from rank_programs import dcp
from rank_programs.dcp import Case, Run
from torch.distributed.checkpoint.state_dict import (
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

import steprule
from steprule.rules import OPTIMIZERS

# Options with which a rule has all the state that it can have.
FULL: dict[str, dict[str, Any]] = {
    "SGD": {"momentum": 0.9, "dampening": 0.5},
    "RMSprop": {"momentum": 0.9, "centered": True},
    "Adam": {"amsgrad": True},
}
#: Sparse gradients are of no DTensor, and closures of no such checkpoint (torch's neither).
NAMES = [
    cls.__name__ for cls in OPTIMIZERS.values() if not cls.needs_closure and not cls.needs_sparse
]
# Sums over the whole parameter are in another order on other ranks.
SUMMED = {
    name
    for name in NAMES
    if OPTIMIZERS[name.lower()].rule is not None
    and (has_reductions(name) or recording_of(name).matrix_operations)
}


def cases() -> list[Case]:
    """Every optimizer over every sharding; ways and options where they tell."""
    found = [
        Case(name, FULL.get(name, {}), shapes, "nested", "float64")
        for name in NAMES
        for shapes in ("even", "uneven", "tensor")
    ]
    found += [Case(name, {}, "uneven", way) for name in ("Adam", "NAdam") for way in dcp.WAYS]
    found += [
        Case("NAdam", {}, "tensor", way, dtype)
        for way in dcp.WAYS
        for dtype in ("float64", "bfloat16")
    ]
    found += [
        Case("AdamW", options, "large", way, dtype)
        for way in dcp.WAYS
        for options, dtype in (
            ({"ema_decay": 0.9, "clip_grad_norm": 1.0, "on_nonfinite": "skip"}, "float64"),
            ({"lr": "linear(0, 0.1, steps=3)"}, "float64"),
            ({"state_format": "int8"}, "float32"),
            ({"state_format": "bfloat16", "param_rounding": "stochastic"}, "bfloat16"),
            ({"param_rounding": "split24"}, "bfloat16"),
        )
    ]
    return found


def far(one: dict[str, Any], other: dict[str, Any], case: Case) -> dict[str, str]:
    """What differs by more than it may."""
    found = dcp.differences(one, other)
    if case.name not in SUMMED:
        return found
    return {
        key: how
        for key, how in found.items()
        if key not in one
        or key not in other
        or one[key].dtype is not other[key].dtype
        or not torch.allclose(one[key], other[key], rtol=1e-9, atol=1e-12)
    }


def all_far(
    expected: dict[str, Any], found: dict[str, list[dict[str, Any]]], chosen: list[Case]
) -> dict[tuple[str, str], dict[str, str]]:
    """What is far of each outcome, by where it is and which case it is of; empty if nothing is."""
    return {
        (where, case.text): differences
        for where, outcomes in found.items()
        for outcome in outcomes
        for case in chosen
        if (differences := far(expected[case.text], outcome[case.text], case))
    }


@pytest.mark.parametrize("saved_on", [2, 1])
def test_resumed_is_uninterrupted_on_any_number_of_ranks(saved_on: int, tmp_path: Path) -> None:
    chosen = cases()
    before = ranks(saved_on).run(
        dcp.save, str(tmp_path), chosen, is_sharded=saved_on > 1, seconds=90
    )
    found = {
        "2 ranks": ranks(2).run(dcp.go_on, str(tmp_path), chosen, is_sharded=True, seconds=90),
        "a mesh of 1": ranks(1).run(dcp.go_on, str(tmp_path), chosen, is_sharded=True, seconds=90),
        "plain": ranks(1).run(dcp.go_on, str(tmp_path), chosen, is_sharded=False, seconds=90),
    }
    assert not all_far(before[0], found, chosen)


CHECKED = [
    *(Case(name, FULL.get(name, {}), "even", "nested") for name in NAMES),
    Case("SGD", {"momentum": 0.9, "weight_decay": 0.1, "dampening": 0.5}),
    Case("AdamW", {"weight_decay": 0.1, "ema_decay": 0.9}),
    Case("AdamW", {"lr": "linear(0.1, 0.2, steps=3)", "clip_grad_norm": 0.5}),
    Case("Adam", {"param_rounding": "stochastic"}, dtype="bfloat16"),
    Case("SGD", {"param_rounding": "stochastic", "momentum": 0.9}, dtype="bfloat16"),
    Case("AdamW", {"state_format": "int8", "ema_decay": 0.9}, "large"),
]


@pytest.mark.parametrize("case", CHECKED, ids=lambda case: case.text)
def test_being_asked_for_state_changes_nothing(case: Case) -> None:
    """torch takes a step for it, with gradients of 0; it must not count."""
    asked, other = Run(case, is_sharded=False), Run(case, is_sharded=False)
    groups = copy.deepcopy(asked.optimizer.state_dict()["param_groups"])
    state = get_optimizer_state_dict(asked.model, asked.optimizer)["state"]
    values = zip(asked.model.parameters(), other.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in values)
    assert asked.optimizer.state_dict()["param_groups"] == groups
    assert asked.optimizer.last_step == other.optimizer.last_step
    steps = [entry["step"] for entry in state.values() if "step" in entry]
    assert not any(steps)
    for entry in state.values():
        assert "momentum_buffer" not in entry or not entry["momentum_buffer"].any()
    asked.steps(0, 3)
    other.steps(0, 3)
    assert not dcp.differences(asked.tensors(), other.tensors())
    assert (
        asked.optimizer.state_dict()["param_groups"]
        == (other.optimizer.state_dict()["param_groups"])
    )


def test_what_is_shown_has_every_entry() -> None:
    """Loading is into the tensors that are shown: also those of a momentum not yet used."""
    run = Run(Case("SGD", {"momentum": 0.9}), is_sharded=False)
    shown = get_optimizer_state_dict(run.model, run.optimizer)
    assert all("momentum_buffer" in entry for entry in shown["state"].values())
    assert not run.optimizer.state_dict()["state"]  # as torch's before the first step


def test_frozen_parameters_get_no_state() -> None:
    run = Run(Case("Adam", {}), is_sharded=False)
    run.model.a.requires_grad_(False)
    shown = get_optimizer_state_dict(run.model, run.optimizer)
    assert [*shown["state"]] == ["b"]
    set_optimizer_state_dict(run.model, run.optimizer, shown)


def test_hooks_and_subclasses_see_what_they_would() -> None:
    """A class of the user's that steps by ``super().step()`` is asked in vain for a step, too."""

    class Counting(steprule.Adam):
        calls = 0

        def step(self, closure: Any = None) -> Any:
            self.calls += 1
            return super().step(closure)

    run = Run(Case("Adam", {}), is_sharded=False)
    optimizer = Counting(run.model.parameters(), lr=0.1)
    get_optimizer_state_dict(run.model, optimizer)
    assert optimizer.calls == 1
    assert [int(entry["step"]) for entry in optimizer.state.values()] == [0, 0]


def test_a_step_with_nothing_to_do_still_counts() -> None:
    """Gradients of 0 and an lr of 0 alone are no sign of being asked."""
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.Adam([param], lr=0.0)
    param.grad = torch.zeros(3)
    optimizer.step()
    assert optimizer.state[param]["step"] == 1


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_scalar_state_keeps_its_dtype(dtype: torch.dtype) -> None:
    """torch's own NAdam has ``mu_product`` in the parameter's dtype after loading."""
    run = Run(Case("NAdam", {}, dtype=str(dtype).removeprefix("torch.")), is_sharded=False)
    run.steps(0, 2)
    before = {k: (v.dtype, float(v)) for k, v in _scalars(run).items()}
    shown = get_optimizer_state_dict(run.model, run.optimizer)
    other = Run(run.case, is_sharded=False, seed=1)
    set_optimizer_state_dict(other.model, other.optimizer, shown)
    assert {k: (v.dtype, float(v)) for k, v in _scalars(other).items()} == before
    assert before["a.mu_product"][0] is torch.float32


def _scalars(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.tensors().items() if value.dim() == 0}
