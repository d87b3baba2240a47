"""State dicts for torch's optimizers: what they hold, and a run that goes there and back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import needs_torchs

import steprule
from steprule.rules import OPTIMIZERS
from steprule.schedules import cosine

NAMES = [x.__name__ for x in OPTIMIZERS.values() if x.rule and hasattr(torch.optim, x.__name__)]


#: What torch's classes have no place for, as far as a class takes it.
OURS_ALONE: dict[str, Any] = {
    "lr": cosine(0.1, 0.0, steps=10),
    "ema_decay": 0.9,
    "clip_grad_norm": 1.0,
    "on_nonfinite": "skip",
    "cautious": True,
    "state_format": "int8",
    "state_format_min_size": 1,
}
ADDED = {"SGD": {"classic_momentum": True, "momentum": 0.9}, "Adam": {"eps_inside_sqrt": True}}


def with_all_that_torch_has_not(name: str, params: Any) -> Any:
    options = {**OURS_ALONE, **ADDED.get(name, {})}
    if name in ("ASGD", "SparseAdam"):  # which refuse it
        del options["cautious"]
    if name == "SparseAdam":
        options = {"lr": options["lr"]}
    return getattr(steprule, name)(params, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_state_dict_for_torch_has_what_torchs_class_has(name: str) -> None:
    """Else torch carries our schedules and averages along, and gives them back as they were."""
    params = [torch.randn(6, 5, requires_grad=True)]
    ours = with_all_that_torch_has_not(name, params)
    momentum = {"momentum": 0.9} if name == "SGD" else {}
    theirs = needs_torchs(name)([torch.zeros(6, 5, requires_grad=True)], lr=0.5, **momentum)
    for optimizer in (ours, theirs):
        for param in optimizer.param_groups[0]["params"]:
            grad = torch.randn(6, 5)
            param.grad = grad.to_sparse(1) if name == "SparseAdam" else grad
        optimizer.step()
    packed = ours.torch_state_dict()
    (group,) = packed["param_groups"]
    assert group.keys() <= theirs.param_groups[0].keys()
    assert group["lr"] == ours.param_groups[0]["lr"] == OURS_ALONE["lr"](1)
    (entry,) = packed["state"].values()
    assert entry.keys() <= theirs.state_dict()["state"][0].keys()
    theirs.load_state_dict(packed)


def test_a_run_goes_to_torch_and_back() -> None:
    """Schedules and averages stay with the optimizer that has them."""
    param = torch.randn(6, requires_grad=True)
    schedule = cosine(0.1, 0.0, steps=10)
    ours = steprule.AdamW([param], lr=schedule, ema_decay=0.9)
    theirs = torch.optim.AdamW([param])

    def run(optimizer: Any, steps: int) -> None:
        for _ in range(steps):
            param.grad = torch.randn(6)
            optimizer.step()

    run(ours, 3)
    theirs.load_state_dict(ours.torch_state_dict())
    assert theirs.param_groups[0]["lr"] == schedule(3)
    run(theirs, 4)
    ours.param_groups[0]["schedule_step"] += 4  # those that torch made
    ours.load_state_dict(theirs.state_dict())
    assert ours.param_groups[0]["lr"] == schedule(7)
    assert ours.param_groups[0]["ema_decay"] == 0.9
    run(ours, 1)
    assert int(ours.state[param]["step"]) == 8
    assert ours.param_groups[0]["lr"] == schedule(8)
