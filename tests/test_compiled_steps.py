"""Steps given to torch.compile: the optimizer's own, a subclass's, a training step's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import gradients, make_params, rule_optimizers
from torch import nn

import steprule
from steprule.rules import OPTIMIZERS

pytestmark = pytest.mark.filterwarnings("ignore")  # those of the compiler


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Passes(steprule.SGD):
    """Overrides step, as users do, and calls the base's."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Own(steprule.Optimizer):
    """A subclass in torch's manner: its own step, no rule."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"] * param.grad)


@pytest.mark.parametrize("with_hooks", [False, True])
@pytest.mark.parametrize("cls", [OPTIMIZERS[name.lower()] for name in rule_optimizers()])
def test_an_optimizer_whose_step_was_compiled(cls: Any, with_hooks: bool) -> None:
    """`o.step = torch.compile(o.step)`, as in many public scripts; hooks run once."""
    runs = []
    for compiles in (False, True):
        params = make_params(cls.__name__)
        optimizer = cls(params)
        calls: list[int] = []
        if with_hooks:
            optimizer.register_step_post_hook(lambda *_, calls=calls: calls.append(1))
        if compiles:
            optimizer.step = torch.compile(optimizer.step, backend="eager")
        for _ in gradients(params, 3):
            optimizer.step()
        assert len(calls) == 3 * with_hooks
        runs.append(params)
    torch.testing.assert_close(*runs, rtol=0, atol=0)


@pytest.mark.parametrize("cls", [Passes, Own])
@pytest.mark.parametrize("with_hooks", [False, True])
@pytest.mark.parametrize("how", ["its step", "the training step"])
def test_a_subclass_whose_step_was_compiled_steps_once(
    cls: Any, with_hooks: bool, how: str
) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = cls([param], lr=0.25)
    calls: list[int] = []
    if with_hooks:
        optimizer.register_step_post_hook(lambda *_: calls.append(1))
    if how == "its step":
        step = optimizer.step = torch.compile(optimizer.step, backend="eager")
    else:
        step = torch.compile(lambda: optimizer.step(), backend="eager")
    for done in range(1, 4):
        param.grad = torch.ones(3)
        step()
        assert len(calls) == done * with_hooks
    assert param.tolist() == [0.25] * 3


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("cls", [steprule.SGD, Passes, Own, torch.optim.SGD])
def test_a_compiled_training_step(cls: Any, set_to_none: bool) -> None:
    torch.manual_seed(0)
    net = nn.Linear(3, 2)
    optimizer = cls(net.parameters(), lr=0.01)

    def step(x: torch.Tensor) -> torch.Tensor:
        optimizer.zero_grad(set_to_none=set_to_none)
        loss = net(x).square().sum()
        loss.backward()
        optimizer.step()
        return loss

    compiled = torch.compile(step, backend="eager")
    losses = [compiled(torch.ones(4, 3)).item() for _ in range(3)]
    torch.manual_seed(0)
    plain_net = nn.Linear(3, 2)
    plain = torch.optim.SGD(plain_net.parameters(), lr=0.01)
    for loss in losses:
        plain.zero_grad()
        expected = plain_net(torch.ones(4, 3)).square().sum()
        expected.backward()
        plain.step()
        assert loss == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente"])
def test_lbfgs_is_not_traced(line_search_fn: Any) -> None:
    """Its numbers are the same, and nothing of it is compiled."""
    ends = []
    for how in ("plain", "its step", "the training step"):
        x = nn.Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
        optimizer = OPTIMIZERS["lbfgs"]([x], lr=0.5, max_iter=3, line_search_fn=line_search_fn)
        frames: list[Any] = []

        def backend(graph: Any, _: Any, frames: list[Any] = frames) -> Any:
            frames.append(graph)
            return graph.forward

        def closure(x: Any = x, optimizer: Any = optimizer) -> Any:
            optimizer.zero_grad()
            loss = (1 - x[0]) ** 2 + 100 * (x[1] - x[0] ** 2) ** 2
            loss.backward()
            return loss

        step = optimizer.step
        if how == "its step":
            step = optimizer.step = torch.compile(step, backend=backend)
        elif how == "the training step":
            step = torch.compile(lambda c, o=optimizer: o.step(c), backend=backend)
        for _ in range(3):
            step(closure)
        assert not frames
        ends.append(x.detach())
    assert torch.equal(ends[0], ends[1])
    assert torch.equal(ends[0], ends[2])
