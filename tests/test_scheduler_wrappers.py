"""Schedulers on wrappers that are optimizers by inheritance and never ran `Optimizer.__init__`.

As Accelerate's AcceleratedOptimizer, opacus' DPOptimizer and torch's PostLocalSGDOptimizer: they
hold another optimizer, forward its groups, and call its step in theirs.
"""

from __future__ import annotations

import copy
import pickle
import warnings
from collections import OrderedDict
from typing import Any

import pytest
import torch
from lr_scheduler_cases import (
    CASES,
    COMPOSITES,
    OPTIMIZERS,
    OURS,
    TORCH,
    close,
    in_force,
    make_optimizer,
    run,
)

# torch 2.5's SequentialLR gives its members an epoch, and so makes them warn.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
ALL = CASES | COMPOSITES


class Holds(torch.optim.Optimizer):
    """The groups are an attribute; of the rest there is only what this class writes."""

    def __init__(self, optimizer: Any) -> None:
        self.inner = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.inner.step(closure)

    def add_param_group(self, param_group: Any) -> None:
        self.inner.add_param_group(param_group)


class Properties(torch.optim.Optimizer):
    """Groups, state and defaults by property, as Accelerate's."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.optimizer.state

    @property
    def defaults(self) -> Any:  # type: ignore[override]
        return self.optimizer.defaults

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.optimizer.step(closure)

    def __getstate__(self) -> Any:
        return vars(self).copy()

    def __setstate__(self, state: Any) -> None:
        vars(self).update(state)


class Forwards(torch.optim.Optimizer):
    """Whatever is not here is the held optimizer's, its hooks among it."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise AttributeError(name)
        return getattr(self.optimizer, name)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.optimizer.step(closure)


class WithHooks(Properties):
    """Has hooks of its own that nobody calls."""

    hooks: Any = OrderedDict

    def __init__(self, optimizer: Any) -> None:
        super().__init__(optimizer)
        self._optimizer_step_pre_hooks = self.hooks()
        self._optimizer_step_post_hooks = self.hooks()


class WithPlainHooks(WithHooks):
    hooks = dict


class Several(Properties):
    """Holds optimizers in a dict, and steps them together."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizers = {"all": optimizer}

    @property
    def optimizer(self) -> Any:
        return self.optimizers["all"]


class NoAverager:
    step = 0

    def average_parameters(self, params: Any) -> None:
        pass


def post_local_sgd(optimizer: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit, which torch's own module still uses
        from torch.distributed.optim import PostLocalSGDOptimizer
    averager: Any = NoAverager()
    return PostLocalSGDOptimizer(optimizer, averager)


WRAPPERS: dict[str, Any] = {
    "Holds": Holds,
    "Properties": Properties,
    "Forwards": Forwards,
    "WithHooks": WithHooks,
    "WithPlainHooks": WithPlainHooks,
    "Several": Several,
    "PostLocalSGD": post_local_sgd,
    "wrapped twice": lambda optimizer: Properties(Holds(optimizer)),
}


class Hides(torch.optim.Optimizer):
    """Nothing in it can be seen to step."""

    def __init__(self, optimizer: Any) -> None:
        self.param_groups = optimizer.param_groups
        self.run = optimizer.step

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        return self.run(closure)


EVERY = WRAPPERS | {"Hides": Hides}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", EVERY)
def test_a_wrapper_is_driven_as_what_it_wraps(wrapper: str, kind: str, name: str) -> None:
    ours, theirs = make_optimizer(kind), make_optimizer(kind.replace("steprule", "torch"))
    wrapped = EVERY[wrapper](ours)
    expected = run(theirs, ALL[name](TORCH, theirs), 30)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler = ALL[name](OURS, wrapped)
        seen = run(wrapped, scheduler, 30)
    assert all(close(mine, other) for mine, other in zip(seen, expected, strict=True))
    assert scheduler.get_last_lr() == scheduler.get_lr() == [g["lr"] for g in ours.param_groups]
    scheduler.lr_at(7)
    again = ALL[name](OURS, EVERY[wrapper](make_optimizer(kind)))
    again.load_state_dict(scheduler.state_dict())
    assert close(in_force(again.optimizer)[::2], in_force(wrapped)[::2])


@pytest.mark.parametrize("wrapper", EVERY)
def test_a_plateau_drives_a_wrapper(wrapper: str) -> None:
    sides = []
    for module, wrap in ((OURS, EVERY[wrapper]), (TORCH, lambda optimizer: optimizer)):
        optimizer = make_optimizer()
        scheduler = module.ReduceLROnPlateau(wrap(optimizer), patience=1)
        for metric in (1.0, 2.0, 2.0, 2.0):
            scheduler.step(metric)
        sides.append(in_force(optimizer))
    assert sides[0] == sides[1]


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_the_wrong_order_is_seen_through_a_wrapper(wrapper: str, kind: str) -> None:
    wrapped = WRAPPERS[wrapper](make_optimizer(kind))
    scheduler = OURS.StepLR(wrapped, 1)
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_hold_on_skip_counts_the_steps_of_what_is_wrapped(wrapper: str, kind: str) -> None:
    inner = make_optimizer(kind, lrs=(1.0,))
    wrapped = WRAPPERS[wrapper](inner)
    for build in (
        lambda o: OURS.StepLR(o, 1, 0.5, hold_on_skip=True),
        lambda o: OURS.ChainedScheduler([OURS.StepLR(o, 1, 0.5)], hold_on_skip=True),
    ):
        inner.param_groups[0]["lr"] = 1.0
        scheduler = build(wrapped)
        scheduler.step()  # nothing was stepped: held
        assert inner.param_groups[0]["lr"] == 1.0
        for expected in (0.5, 0.25):
            wrapped.step()
            scheduler.step()
            scheduler.step()
            assert inner.param_groups[0]["lr"] == expected


def test_where_no_step_can_be_seen_nothing_is_held_and_nothing_is_said() -> None:
    inner = make_optimizer(lrs=(1.0,))
    scheduler = OURS.StepLR(Hides(inner), 1, 0.5, hold_on_skip=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scheduler.step()
        OURS.StepLR(Hides(inner), 1, 1.0).step()
    assert inner.param_groups[0]["lr"] == 0.5


def test_a_wrapper_may_be_given_another_optimizer() -> None:
    wrapped = Properties(make_optimizer(lrs=(1.0,)))
    scheduler = OURS.StepLR(wrapped, 1, 0.5, hold_on_skip=True)
    wrapped.step()
    scheduler.step()
    wrapped.optimizer = other = make_optimizer(lrs=(1.0,))
    for _ in range(3):
        wrapped.step()
        scheduler.step()
    assert other.param_groups[0]["lr"] == 0.125


def test_a_scaler_that_skips_inside_the_wrapper_holds_the_schedule() -> None:
    class Scaled(Properties):
        def __init__(self, optimizer: Any) -> None:
            super().__init__(optimizer)
            self.scaler = torch.amp.GradScaler("cpu")

        def step(self, closure: Any = None) -> Any:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    for kind in OPTIMIZERS:
        inner = make_optimizer(kind, lrs=(1.0,))
        wrapped = Scaled(inner)
        scheduler = OURS.StepLR(wrapped, 1, 0.5, hold_on_skip=True)
        (param,) = inner.param_groups[0]["params"]
        for scale, expected in ((float("inf"), 1.0), (1.0, 0.5)):
            inner.zero_grad()
            wrapped.scaler.scale((param * scale).sum()).backward()
            wrapped.step()
            scheduler.step()
            assert inner.param_groups[0]["lr"] == expected


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda thing: pickle.loads(pickle.dumps(thing))])
def test_a_scheduler_on_a_wrapper_is_copied_with_it(copied: Any) -> None:
    wrapped = Properties(make_optimizer(lrs=(1.0,)))
    scheduler = copied(OURS.StepLR(wrapped, 1, 0.5, hold_on_skip=True))
    for _ in range(2):
        scheduler.optimizer.step()
        scheduler.step()
        scheduler.step()
    assert scheduler.get_last_lr() == [0.25]
    assert wrapped.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize("wrapper", EVERY)
@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_momentum_is_refused_where_what_is_wrapped_has_none(wrapper: str, name: str) -> None:
    wrapped = EVERY[wrapper](torch.optim.Rprop([torch.zeros(1, requires_grad=True)]))
    arguments = (0.1, 1.0) if name == "CyclicLR" else (1.0, 10)
    with pytest.raises(ValueError, match="must support momentum or beta1"):
        getattr(OURS, name)(wrapped, *arguments)
