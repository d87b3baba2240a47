"""Dropping an optimizer frees all that it held at once, without the cyclic collector."""

from __future__ import annotations

import contextlib
import gc
import resource
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import engines_of
from torch import nn

import steprule
from steprule.rules import OPTIMIZERS


@pytest.fixture(autouse=True, scope="module")
def without_the_collector() -> Iterator[None]:
    gc.collect()  # once: it looks at all that the suite has imported
    gc.disable()
    yield
    gc.enable()


class Holder:
    """An optimizer over a few parameters, and weak references to all of it."""

    def __init__(self, name: str, engine: str = "auto", **options: Any) -> None:
        cls: Any = OPTIMIZERS[name.lower()]
        self.is_sparse = getattr(cls.rule, "sparse", "") == "only"
        self.params = [nn.Parameter(torch.ones(6, 4)) for _ in range(30)]
        named = {} if engine == "auto" else {"engine": engine}
        self.optimizer = cls(self.params, **named, **options)
        self.needs_closure = cls.needs_closure

    def give_gradients(self) -> None:
        for param in self.params:
            grad = torch.full((6, 4), 0.1)
            param.grad = grad.to_sparse(1) if self.is_sparse else grad

    def step(self, steps: int = 1) -> None:
        for _ in range(steps):
            self.give_gradients()
            if self.needs_closure:
                self.optimizer.step(self.closure)
            else:
                self.optimizer.step()

    def closure(self) -> torch.Tensor:
        self.optimizer.zero_grad()
        loss = sum((p**2).sum() for p in self.params)
        loss.backward()  # type: ignore[union-attr]
        return loss  # type: ignore[return-value]

    def references(self) -> list[weakref.ref[Any]]:
        objects: list[Any] = [self.optimizer, *self.params]
        objects += [param.grad for param in self.params if param.grad is not None]
        for entry in self.optimizer.state.values():
            if isinstance(entry, dict):
                objects += [v for v in entry.values() if isinstance(v, torch.Tensor)]
        return [weakref.ref(x) for x in objects]


def load_own_state(held: Holder) -> None:
    held.optimizer.load_state_dict(held.optimizer.state_dict())
    held.step(2)


def step_that_raises(held: Holder) -> None:
    held.give_gradients()
    held.params[3].data = torch.ones(5)
    with contextlib.suppress(RuntimeError, ValueError, IndexError):
        held.optimizer.step(held.closure) if held.needs_closure else held.optimizer.step()
    held.params[3].data = torch.ones(6, 4)


def explain(held: Holder) -> None:
    held.give_gradients()
    str(held.optimizer.explain())


def scheduler(held: Holder) -> None:
    one = steprule.lr_scheduler.CosineAnnealingLR(held.optimizer, 10)
    two = steprule.lr_scheduler.LambdaLR(held.optimizer, lambda epoch: 0.5**epoch)
    both = steprule.lr_scheduler.ChainedScheduler([one, two])
    for _ in range(3):
        held.step()
        both.step()


def held_scheduler(held: Holder) -> None:
    one = steprule.lr_scheduler.StepLR(held.optimizer, 2, hold_on_skip=True)
    for _ in range(3):
        held.step()
        one.step()


def torchs_scheduler(held: Holder) -> None:
    one = torch.optim.lr_scheduler.StepLR(held.optimizer, 2)
    for _ in range(3):
        held.step()
        one.step()


def schedule(held: Holder) -> None:
    steprule.set_learning_rate(held.optimizer, steprule.schedules.cosine(0.1, 0, steps=9))
    held.step(3)


def hooks(held: Holder) -> None:
    handles = [
        held.optimizer.register_step_pre_hook(lambda *_: None),
        held.optimizer.register_step_post_hook(lambda *_: None),
    ]
    held.step(2)
    assert handles


def added_group(held: Holder) -> None:
    more = [nn.Parameter(torch.ones(6, 4)) for _ in range(3)]
    held.params += more
    held.optimizer.add_param_group({"params": more})
    held.step(3)


def zero_grad(held: Holder) -> None:
    held.optimizer.zero_grad()
    held.step()
    held.optimizer.zero_grad(set_to_none=False)


LIVES: list[Callable[[Holder], None]] = [
    load_own_state,
    step_that_raises,
    explain,
    scheduler,
    held_scheduler,
    torchs_scheduler,
    schedule,
    hooks,
    added_group,
    zero_grad,
]
SUBJECTS = [
    (cls.__name__, engine)
    for cls in OPTIMIZERS.values()
    for engine in (engines_of(cls.__name__) if cls.rule is not None else ("auto",))
]


def assert_all_freed(held: list[Holder]) -> None:
    references = held[0].references()
    held.clear()
    alive = sum(reference() is not None for reference in references)
    assert not alive, f"{alive} of {len(references)} are alive"


@pytest.mark.parametrize(("name", "engine"), SUBJECTS)
def test_nothing_outlives_an_optimizer(name: str, engine: str) -> None:
    for steps in (0, 1, 20):  # planned not at all, once, and settled
        held = [Holder(name, engine)]
        held[0].step(steps)
        assert_all_freed(held)


@pytest.mark.parametrize("life", LIVES, ids=lambda life: life.__name__)
@pytest.mark.parametrize("name", ["Adam", "SGD", "SparseAdam", "Adafactor", "LBFGS"])
def test_whatever_was_done_with_it(name: str, life: Callable[[Holder], None]) -> None:
    held = [Holder(name)]
    held[0].step(4)
    life(held[0])
    assert_all_freed(held)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_no_step_keeps_a_gradient(engine: str) -> None:
    held = Holder("Adam", engine)
    for _ in range(20):
        held.step()
        seen = [weakref.ref(param.grad) for param in held.params]
        for param in held.params:
            param.grad = None
        assert all(reference() is None for reference in seen)


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from there")
@pytest.mark.parametrize("name", ["Adam", "LBFGS"])
def test_memory_stays_flat_over_many_optimizers(name: str) -> None:
    """Each has parameter, gradient and state of 50 MB in all; one left behind would show."""
    cls: Any = OPTIMIZERS[name.lower()]
    seen = []
    for i in range(200):
        param = nn.Parameter(torch.zeros(50 * 2**20 // 16))
        optimizer = cls([param])
        param.grad = torch.zeros_like(param)
        if name == "LBFGS":
            optimizer.step(lambda p=param: (p[:4] ** 2).sum())
        else:
            optimizer.step()
        del param, optimizer
        if i % 20 == 19:
            seen.append(resident_mb())
    assert max(seen[1:]) - seen[0] < 60
