"""SophiaG's estimate of the curvature: a second rule over the state of the first."""

from __future__ import annotations

import copy
import doctest
import gc
import importlib
import pickle
import weakref
from typing import Any

import pytest
import torch
from formats import ROUNDINGS, STATE_FORMATS
from helpers import ENGINES
from torch import Tensor, nn

import steprule
from steprule.rules import SophiaG

BETA2 = 0.75


def made(dtype: torch.dtype = torch.float32, **options: Any) -> tuple[SophiaG, list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((64, 65), (7,))
    params = [torch.randn(s, generator=generator).to(dtype).requires_grad_() for s in sizes]
    return SophiaG(params, lr=0.01, betas=(0.9, BETA2), bs=8, **options), params


def give_gradients(params: list[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for param in params:
        noise = torch.randn(param.shape, generator=generator)
        param.grad = noise.sign().mul_(noise.abs().clamp(min=0.1)).to(param.dtype)


def hessians(optimizer: SophiaG) -> list[Tensor]:
    """The estimates as numbers, whatever they are stored in."""
    return [x["hessian"].float().clone() for x in optimizer.torch_state_dict()["state"].values()]


@pytest.mark.parametrize("state_format", STATE_FORMATS)
@pytest.mark.parametrize("engine", ENGINES)
def test_the_average_moves_and_nothing_else_does(engine: str, state_format: str) -> None:
    optimizer, params = made(engine=engine, state_format=state_format, weight_decay=0.5)
    give_gradients(params, 0)
    optimizer.step()
    before = copy.deepcopy(optimizer.state_dict()["state"])
    weights = [param.detach().clone() for param in params]
    give_gradients(params, 1)
    optimizer.update_hessian()
    assert all(map(torch.equal, params, weights))
    for i, entry in optimizer.state_dict()["state"].items():
        for key, value in entry.items():
            moves = key.startswith("hessian") or key == "rounding_step"
            assert moves or torch.equal(value, before[i][key]), key
    # What a code may be off by: 4 bits know powers of two, 8 bits eighths.
    rtol = {"int4": 1.0, "int8": 2**-3, "bfloat16": 2**-7}.get(state_format, 1e-6)
    for found, param in zip(hessians(optimizer), params, strict=True):
        assert param.grad is not None
        torch.testing.assert_close(found, (1 - BETA2) * param.grad**2, rtol=rtol, atol=0)


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_parameters_of_16_bits_stay_as_they_are(rounding: str) -> None:
    optimizer, params = made(torch.bfloat16, param_rounding=rounding)
    for seed in range(3):
        give_gradients(params, seed)
        optimizer.step()
        before = [param.detach().clone() for param in params]
        optimizer.update_hessian()
        assert all(map(torch.equal, params, before))


def test_it_may_come_before_the_first_step_and_after_loading() -> None:
    optimizer, params = made()
    give_gradients(params[:1], 0)
    optimizer.update_hessian()
    assert optimizer.state[params[0]].keys() == {"exp_avg", "hessian"}
    assert params[1] not in optimizer.state
    other, others = made()
    other.load_state_dict(optimizer.state_dict())
    for each, its in ((optimizer, params), (other, others), (other, others)):
        for param in its:
            param.grad = torch.ones_like(param)
        each.update_hessian()
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # another tensor for each
    optimizer.update_hessian()
    for mine, its in zip(hessians(optimizer), hessians(other), strict=True):
        assert torch.equal(mine, its)


def test_gradients_count_as_they_are() -> None:
    """Neither clipped nor masked; averages of parameters stay."""
    options = {"clip_grad_norm": 1e-3, "maximize": True, "ema_decay": 0.5, "cautious": True}
    optimizer, params = made(**options)
    give_gradients(params, 0)
    optimizer.step()
    averages = [optimizer.state[param]["param_ema"].clone() for param in params]
    optimizer.update_hessian()
    for param, average, found in zip(params, averages, hessians(optimizer), strict=True):
        assert param.grad is not None
        torch.testing.assert_close(found, (1 - BETA2) * param.grad**2)
        assert torch.equal(optimizer.state[param]["param_ema"], average)
    with optimizer.averaged(), pytest.raises(RuntimeError, match="at their running averages"):
        optimizer.update_hessian()


def test_options_and_schedules_count_from_the_next_call() -> None:
    halves = steprule.schedules.linear(0.5, 0.75, steps=1)
    param = torch.ones(3, requires_grad=True)
    optimizer = SophiaG([param], betas=(0.9, halves))
    param.grad = torch.ones(3)
    optimizer.update_hessian()
    assert hessians(optimizer)[0].tolist() == [0.5] * 3
    optimizer.step()
    optimizer.update_hessian()
    assert hessians(optimizer)[0].tolist() == [0.625] * 3
    optimizer.add_param_group({"params": torch.ones(2, requires_grad=True), "betas": (0.9, 0.0)})
    other = optimizer.param_groups[1]["params"][0]
    other.grad = torch.full((2,), 3.0)
    optimizer.update_hessian()
    assert optimizer.state[other]["hessian"].tolist() == [9.0] * 2


def test_a_gradient_that_cannot_be_taken_changes_nothing() -> None:
    optimizer, params = made()
    give_gradients(params, 0)
    optimizer.step()
    before = hessians(optimizer)
    params[1].grad = torch.ones(7).to_sparse()
    with pytest.raises(
        RuntimeError, match="SophiaG does not support sparse gradients: parameter 1"
    ):
        optimizer.update_hessian()
    assert all(map(torch.equal, hessians(optimizer), before))
    give_gradients(params, 1)
    optimizer.update_hessian()
    assert not any(map(torch.equal, hessians(optimizer), before))


def test_copies_go_on_and_nothing_outlives_them() -> None:
    optimizer, params = made()
    give_gradients(params, 0)
    optimizer.update_hessian()
    copied = pickle.loads(pickle.dumps(optimizer))
    for param in copied.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    copied.update_hessian()
    state, grad = (weakref.ref(x) for x in (optimizer.state[params[0]]["hessian"], params[0].grad))
    gc.disable()
    try:
        params[0].grad = None
        assert grad() is None
        del optimizer, params
        assert state() is None
    finally:
        gc.enable()


def test_steps_in_the_backward_pass_accumulate_the_drawn_loss() -> None:
    model = nn.Linear(3, 2)
    optimizer = steprule.step_in_backward(model, SophiaG)
    assert isinstance(optimizer, SophiaG)
    with steprule.accumulating(optimizer):
        model(torch.ones(4, 3)).mean().backward()
    optimizer.update_hessian()
    assert (optimizer.state[model.weight]["hessian"] > 0).all()


def test_the_example_holds() -> None:
    result = doctest.testmod(importlib.import_module("steprule.rules.sophiag"))
    assert result.attempted
    assert not result.failed
