"""A schedule that leaves its option's range is refused at that step, before anything is changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import gradients, make_params, rule_optimizers
from torch.utils._pytree import tree_map_only

import steprule
from steprule.rules import OPTIMIZERS
from steprule.schedules import Schedule, cosine, linear

# 0, then -0.5: the first value, which is checked with the group, is in range.
FALLING = cosine(-1, 0, steps=10).warmup(2)


def steps(optimizer: Any, params: list[Any], count: int) -> None:
    for _ in gradients(params, count):
        optimizer.step()


def state_of(optimizer: Any, params: list[Any]) -> str:
    kept = ([param.detach() for param in params], optimizer.state_dict())
    return repr(tree_map_only(torch.Tensor, lambda x: x.tolist(), kept))


def refused(optimizer: Any, params: list[Any], at: int, match: str) -> None:
    """Step until the schedule is refused; parameters, state and schedule stay as they were."""
    steps(optimizer, params, at)
    before = state_of(optimizer, params)
    for _ in range(2):  # not the first time only
        with pytest.raises(ValueError, match=match):
            optimizer.step()
        assert state_of(optimizer, params) == before


# Rprop reads its lr when it makes the state, and no more.
@pytest.mark.parametrize("name", [name for name in rule_optimizers() if name != "Rprop"])
def test_a_negative_rate_is_refused(name: str) -> None:
    params = make_params(name)
    optimizer = OPTIMIZERS[name.lower()](params, lr=FALLING)
    refused(optimizer, params, 1, r"group 0: lr must be .*warmup\(2\) gives -0\.5 at step 1")


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize(
    ("option", "at", "match"),
    [
        ({"weight_decay": linear(0.1, -1, steps=5)}, 1, r"weight_decay must .* gives -0\.12 at"),
        ({"betas": (linear(0.9, 1.1, steps=5), 0.99)}, 3, r"betas\[0\] must .* gives 1\.02 at"),
        ({"clip_grad_norm": linear(1, -1, steps=5)}, 3, r"clip_grad_norm must .* gives -0\.2 at"),
        ({"ema_decay": linear(0.9, 1.1, steps=5)}, 3, r"ema_decay must .* gives 1\.02 at step 3"),
    ],
    ids=["weight_decay", "betas", "clip_grad_norm", "ema_decay"],
)
def test_so_is_any_option(engine: str, option: dict[str, Any], at: int, match: str) -> None:
    params = make_params("AdamW")
    refused(steprule.AdamW(params, lr=1e-3, engine=engine, **option), params, at, match)


class ByHand(steprule.Optimizer):
    """An optimizer with a step of its own."""

    def __init__(self, params: Any, lr: Schedule) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for param in group["params"]:
                param.add_(param.grad, alpha=-group["lr"])


@pytest.mark.parametrize(
    "make",
    [
        ByHand,
        lambda params, lr: steprule.combine(steprule.SGD(params, lr=lr)),
        lambda params, lr: steprule.SGD(params, lr=torch.tensor(0.1), weight_decay=lr),
    ],
    ids=["a step of its own", "combined", "a tensor beside it"],
)
def test_so_it_is_whatever_steps(make: Callable[..., Any]) -> None:
    params = make_params("SGD")
    refused(make(params, lr=FALLING), params, 1, r"gives -0\.5 at step 1")


def test_lbfgs() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = steprule.LBFGS([param], lr=FALLING)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = param.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with pytest.raises(ValueError, match=r"gives -0\.5 at step 1"):
        optimizer.step(closure)


def test_in_the_backward_pass() -> None:
    net = torch.nn.Linear(2, 2)
    optimizer = steprule.step_in_backward(net, lambda params: steprule.SGD(params, lr=FALLING))
    net(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    before = [param.detach().clone() for param in net.parameters()]
    with pytest.raises(ValueError, match=r"group 0: lr must .* gives -0\.5 at step 1"):
        net(torch.ones(1, 2)).sum().backward()
    assert all(map(torch.equal, net.parameters(), before))


def test_the_group_is_named() -> None:
    one, two = make_params("SGD"), make_params("SGD", seed=3)
    optimizer = steprule.SGD([{"params": one}, {"params": two, "lr": FALLING}], lr=0.1)
    with pytest.raises(ValueError, match="group 1: lr"):
        steps(optimizer, [*one, *two], 3)


def test_nan_is_refused() -> None:
    class Broken(Schedule):
        def _eval(self, step: Any) -> Any:
            return step * float("nan") ** (step > 0)

    params = make_params("SGD")
    optimizer = steprule.SGD(params, lr=Broken())
    with pytest.raises(ValueError, match="gives nan at step 1"):
        steps(optimizer, params, 3)


def test_the_end_of_a_range_and_a_value_set_by_hand_are_taken() -> None:
    params = make_params("SGD")
    optimizer = steprule.SGD(params, lr=linear(0.1, 0.0, steps=2))
    for _ in gradients(params, 4):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = -0.1  # as torch takes it
    optimizer.step()
