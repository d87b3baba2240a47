"""The foreach engine's lists, kept from step to step: whatever changes between steps is seen."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import Case, elementwise_optimizers, has_shared_reductions
from torch import nn

from steprule.engines.foreach import runner

NAMES = elementwise_optimizers()


def made(case: Case, **more: Any) -> tuple[list[nn.Parameter], Any]:
    torch.manual_seed(0)
    params = [nn.Parameter(torch.randn(3, 5)) for _ in range(4)]
    params.append(nn.Parameter(torch.randn(7, dtype=torch.float64)))
    groups = [{"params": params[:2], "lr": 0.01}, {"params": params[2:]}]
    return params, case.ours(groups, **{"lr": 0.01, **case.options, **more})


def other_lr(optimizer: Any, params: Any, i: int) -> None:
    optimizer.param_groups[1]["lr"] = 0.02 if i % 2 else 0.01


def other_state(optimizer: Any, params: Any, i: int) -> None:
    """The same numbers in other tensors: those that were there must not be written any more."""
    for entry in optimizer.state.values():
        entry.update({k: v.clone() for k, v in entry.items() if isinstance(v, torch.Tensor)})


def other_memory(optimizer: Any, params: Any, i: int) -> None:
    for param in params:
        param.data = param.data.clone()


def a_gradient_less(optimizer: Any, params: Any, i: int) -> None:
    if i % 2:
        params[i % 5].grad = None


def another_count(optimizer: Any, params: Any, i: int) -> None:
    if i == 3 and "step" in optimizer.state[params[1]]:
        optimizer.state[params[1]]["step"].fill_(9.0)


def cleared_state(optimizer: Any, params: Any, i: int) -> None:
    if i == 3:
        optimizer.state[params[1]].clear()


def loaded(optimizer: Any, params: Any, i: int) -> None:
    if i == 3:
        optimizer.load_state_dict(optimizer.state_dict())


CHANGES = [
    other_lr,
    other_state,
    other_memory,
    a_gradient_less,
    another_count,
    cleared_state,
    loaded,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", NAMES)
def test_steps_with_changes_between_them(name: str, change: Callable[..., None]) -> None:
    """Beside an optimizer that is made anew, with the same state, for every step."""
    case = Case(name, {})
    params, kept = made(case, engine="foreach")
    twins, anew = made(case, engine="foreach")
    for i in range(6):
        grads = [torch.randn_like(param) for param in params]
        for optimizer, tensors in ((kept, params), (anew, twins)):
            for param, grad in zip(tensors, grads, strict=True):
                param.grad = grad.clone()
            change(optimizer, tensors, i)
            optimizer.step()
        anew._plan = None
        for one, other in zip(params, twins, strict=True):
            assert torch.equal(one, other)
    assert {row.engine for row in kept.explain().rows} == {"foreach"}


@pytest.mark.parametrize("name", NAMES)
def test_lists_are_used_and_keep_no_gradient(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    update = runner.KeptLists.update

    def counted(*args: Any) -> bool:
        runs.append(1)
        return update(*args)

    monkeypatch.setattr(runner.KeptLists, "update", counted)
    params, optimizer = made(Case(name, {}), engine="foreach")
    for _ in range(4):
        for param in params:
            param.grad = torch.randn_like(param)
        seen = weakref.ref(params[0].grad)
        optimizer.step()
        params[0].grad = None
        assert seen() is None
        params[0].grad = torch.zeros_like(params[0])
    # A rule with state gathers its leaves at their first update, one with sums over several always.
    steps = 0 if has_shared_reductions(name) else 4 - bool(optimizer.state)
    rule = optimizer.rule
    assert rule is not None
    has_slots_by_shape = any(slot.shape == "vector" for slot in rule.slots.values())
    # Lists are of one form and one storage.
    lists = {(param.dtype, has_slots_by_shape and param.ndim > 1) for param in params}
    assert len(runs) == steps * len(lists)
