"""Whatever is done between two steps, in whatever order, the next one is torch's next one.

Compared after every step, within the tolerance that 50 steps need (helpers.TOLERANCES): float32
rounds each of some ten operations by 6e-8, and an example has fewer than 50 steps. Memory that is
not the optimizer's (guarded.py), gradients and given-up tensors are compared bit for bit.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from guarded import Watch
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from memory_machine import MemoryMachine, Subject

import steprule
from steprule.ops import sqrt


@steprule.rule
def bounded(param: Any, grad: Any, exp_avg: Any, *, step: Any, lr: Any, decay: Any) -> Any:
    """A rule of the user's own, smooth, so that a rounding stays one."""
    exp_avg = decay * exp_avg + (1 - decay) * grad
    mean = exp_avg / (1 - decay**step)
    return param - lr * mean / sqrt(1 + mean * mean), exp_avg


Bounded = steprule.make_optimizer(bounded, lr=0.01, decay=0.9)


class BoundedTwin(torch.optim.Optimizer):
    """The same by torch's means."""

    def __init__(self, params: Any, lr: float = 0.01, decay: float = 0.9) -> None:
        super().__init__(params, {"lr": lr, "decay": decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["step"] = torch.tensor(0.0)
                    state["exp_avg"] = torch.zeros_like(param)
                state["step"] += 1
                state["exp_avg"].lerp_(param.grad, 1 - group["decay"])
                mean = state["exp_avg"] / (1 - group["decay"] ** state["step"].item())
                param.sub_(group["lr"] * mean / (1 + mean * mean).sqrt())


SUBJECTS = [
    Subject(steprule.Adam, torch.optim.Adam, {"lr": 0.01, "amsgrad": True}),
    Subject(
        steprule.SGD,
        torch.optim.SGD,
        {"lr": 0.05, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.01},
        torch.float64,
    ),
    Subject(steprule.RMSprop, torch.optim.RMSprop, {"lr": 0.01, "momentum": 0.5}),
    Subject(steprule.NAdam, torch.optim.NAdam, {"lr": 0.01}),
    Subject(Bounded, BoundedTwin, {"lr": 0.02}),
]


@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda s: s.ours.__name__)
def test_any_order_of_actions(subject: Subject) -> None:
    run_state_machine_as_test(
        lambda: MemoryMachine(subject),
        settings=settings(
            max_examples=12,
            stateful_step_count=30,
            deadline=None,  # kernels are compiled on the way
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_a_narrower_view_of_the_same_memory() -> None:
    """Its address has not changed: only its size says that the rest is someone else's now."""
    watch = Watch()
    buffer = torch.zeros(1000)
    param = buffer.detach().requires_grad_()
    optimizer = steprule.SGD([param], lr=1.0)
    param.grad = torch.ones(1000)
    optimizer.step()
    param.data = param.data[:10]
    watch.retire(buffer[10:])
    param.grad = torch.ones(10)
    optimizer.step()
    watch.check()
    assert buffer[:10].tolist() == [-2.0] * 10


def test_a_transposed_view_of_the_same_memory() -> None:
    """Its state lies the other way round: elements belong together by index, not by address."""
    params = [torch.zeros(6, 6, requires_grad=True) for _ in range(2)]
    optimizers = [steprule.Adam(params[:1], lr=1.0), torch.optim.Adam(params[1:], lr=1.0)]
    for param, optimizer in zip(params, optimizers, strict=True):
        param.grad = torch.ones(6, 6)
        optimizer.step()
        param.data = param.data.t()
        # As autograd makes it: in the parameter's own layout.
        param.grad = torch.empty_like(param).copy_(torch.ones(6, 6).triu())
        optimizer.step()
    torch.testing.assert_close(*params)


@pytest.mark.skipif(not hasattr(torch.Tensor, "grad_dtype"), reason="torch 2.10 and later")
def test_a_gradient_of_a_finer_dtype_than_before_is_not_rounded() -> None:
    param = torch.zeros(3, requires_grad=True)
    param.grad_dtype = None
    optimizer = steprule.SGD([param], lr=1.0)
    for dtype in (torch.bfloat16, torch.float32):
        param.grad = torch.full((3,), 1.001, dtype=dtype)
        optimizer.step()
    assert param.tolist() == pytest.approx([-2.001] * 3, rel=1e-6)


def test_an_odd_gradient_without_memory_is_refused() -> None:
    """Copying from it would end the process."""
    param = torch.zeros(4, 3, requires_grad=True)
    optimizer = steprule.SGD([param])
    param.grad = torch.ones(3, 4).t()
    optimizer.step()
    param.grad = torch.ones(3, 4).t()
    param.grad.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="memory"):
        optimizer.step()
