"""Steps within the backward pass: the same numbers as steps after it, without the gradients.

- every optimizer: bit for bit the run with ``step()``, its state dict, schedules and schedulers;
- accumulated gradients are released in the last pass; clipping by the parameter's own norm, and by
  the norm of all of the step before;
- what must see all gradients at once is refused by name, and changes nothing.
"""

from __future__ import annotations

import copy
import gc
import math
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import has_shared_reductions, rule_optimizers
from torch import Tensor, nn

import steprule
from steprule.rules import OPTIMIZERS

# LBFGS needs a closure, Muon takes matrices alone.
NAMES = [
    name
    for name in rule_optimizers()
    if not has_shared_reductions(name) and not OPTIMIZERS[name.lower()].only_2d
]


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))


def loss_of(model: nn.Module, k: int) -> Tensor:
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(k))
    return (model(x) ** 2).sum()


class Pair:
    """The same model trained by steps after, and within, the backward pass."""

    def __init__(self, name: str, **options: Any) -> None:
        cls: Any = OPTIMIZERS[name.lower()]
        self.after, self.within = network(), network()
        self.usual = cls(self.after.parameters(), **options)
        self.optimizer = steprule.step_in_backward(self.within, lambda p: cls(p, **options))

    def step(self, k: int) -> None:
        self.usual.zero_grad()
        loss_of(self.after, k).backward()
        self.usual.step()
        loss_of(self.within, k).backward()
        assert all(p.grad is None for p in self.within.parameters())
        self.optimizer.step()

    def check_same(self) -> None:
        for one, other in zip(self.after.parameters(), self.within.parameters(), strict=True):
            assert torch.equal(one, other)
        a, b = self.usual.state_dict(), self.optimizer.state_dict()
        assert a["param_groups"] == b["param_groups"]
        assert a["state"].keys() == b["state"].keys()
        for i in a["state"]:
            assert a["state"][i].keys() == b["state"][i].keys()
            for key, value in a["state"][i].items():
                torch.testing.assert_close(value, b["state"][i][key], rtol=0, atol=0)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_the_usual_run(name: str) -> None:
    pair = Pair(name, lr=1e-3)  # schedule-free SGD's own of 1 is too much here
    for k in range(25):  # long enough for native steps
        pair.step(k)
    pair.check_same()


@pytest.mark.parametrize(
    "options",
    [
        {"state_format": "int8", "state_format_min_size": 0},
        {"lr": steprule.schedules.cosine(1e-2, 1e-4, 10)},
        {"clip_grad_norm": 0.1, "clip_grad_norm_over": "param"},
        {"clip_grad_value": 0.01},
        {"engine": "eager"},
        {"engine": "foreach"},
        {"capturable": True},
    ],
    ids=str,
)
def test_options_mean_what_they_do(options: dict[str, Any]) -> None:
    pair = Pair("Adam", **options)
    for k in range(6):
        pair.step(k)
    pair.check_same()


def test_schedulers_and_groups_are_those_of_one_optimizer() -> None:
    pair = Pair("AdamW")
    schedulers = [
        steprule.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
        for optimizer in (pair.usual, pair.optimizer)
    ]
    for k in range(6):
        pair.step(k)
        for scheduler in schedulers:
            scheduler.step()
        for optimizer in (pair.usual, pair.optimizer):
            optimizer.param_groups[0]["weight_decay"] = 0.1 * k
    pair.check_same()


def test_it_resumes_from_either() -> None:
    pair = Pair("Adam")
    for k in range(3):
        pair.step(k)
    usual, within = pair.usual.state_dict(), pair.optimizer.state_dict()
    pair.usual.load_state_dict(within)
    pair.optimizer.load_state_dict(usual)
    for k in range(3, 6):
        pair.step(k)
    pair.check_same()


def test_gradients_are_accumulated_until_the_last_pass() -> None:
    pair = Pair("SGD", lr=0.01, momentum=0.9)
    for k in range(0, 9, 3):
        pair.usual.zero_grad()
        with steprule.accumulating(pair.optimizer):
            for i in range(2):
                loss_of(pair.after, k + i).backward()
                loss_of(pair.within, k + i).backward()
            assert all(p.grad is not None for p in pair.within.parameters())
        loss_of(pair.after, k + 2).backward()
        loss_of(pair.within, k + 2).backward()
        assert all(p.grad is None for p in pair.within.parameters())
        pair.usual.step()
        pair.optimizer.step()
    pair.check_same()


def test_gradients_left_over_are_stepped_as_usual() -> None:
    pair = Pair("Adam")
    for k in range(3):
        pair.usual.zero_grad()
        loss_of(pair.after, k).backward()
        with steprule.accumulating(pair.optimizer):
            loss_of(pair.within, k).backward()
        pair.usual.step()
        pair.optimizer.step()
        pair.optimizer.zero_grad()
    pair.check_same()


@pytest.mark.parametrize("over", ["all", "group"])
def test_clipping_is_by_the_norm_of_the_step_before(over: Any) -> None:
    model, twin = network(), network()
    bound = 0.5

    def groups(of: nn.Sequential) -> list[dict[str, Any]]:
        return [{"params": of[0].parameters()}, {"params": of[2].parameters()}]

    optimizer = steprule.step_in_backward(
        model,
        lambda _: steprule.SGD(
            groups(model), lr=0.01, clip_grad_norm=bound, clip_grad_norm_over=over
        ),
    )
    usual = steprule.SGD(groups(twin), lr=0.01)
    before: list[float] = []
    for k in range(5):
        loss_of(model, k).backward()
        usual.zero_grad()
        loss_of(twin, k).backward()
        squares = [
            math.fsum(float(p.grad.double().square().sum()) for p in group["params"])
            for group in usual.param_groups
        ]
        norms = (
            [math.sqrt(math.fsum(squares))] * 2 if over == "all" else list(map(math.sqrt, squares))
        )
        for group, norm in zip(usual.param_groups, before or [0.0, 0.0], strict=True):
            for p in group["params"]:
                p.grad *= min(1.0, bound / (norm + 1e-6)) if before else 1.0
        usual.step()
        optimizer.step()
        assert optimizer.last_step.grad_norm == pytest.approx(math.sqrt(math.fsum(squares)))
        before = norms
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert optimizer.last_step.clip_factor is not None
    assert optimizer.last_step.clip_factor < 1


def test_what_was_left_over_is_used_once() -> None:
    """By a layer without a hook, being frozen at first."""
    pair = Pair("SGD", lr=0.1)
    for p in (*pair.after[0].parameters(), *pair.within[0].parameters()):
        p.requires_grad_(False)
    within = steprule.step_in_backward(pair.within, lambda p: steprule.SGD(p, lr=0.1))
    for k in range(6):
        if k == 2:
            for p in (*pair.after[0].parameters(), *pair.within[0].parameters()):
                p.requires_grad_(True)
        pair.usual.zero_grad()
        loss_of(pair.after, k).backward()
        pair.usual.step()
        loss_of(pair.within, k).backward()
        within.step()
        assert all(p.grad is None for p in pair.within.parameters())
    for one, other in zip(pair.after.parameters(), pair.within.parameters(), strict=True):
        assert torch.equal(one, other)


def clipped(model: nn.Module) -> steprule.Optimizer:
    return steprule.step_in_backward(
        model, lambda p: steprule.SGD(p, lr=0.1, momentum=0.9, clip_grad_norm=1e-2)
    )


def test_the_norm_of_the_step_before_is_saved() -> None:
    models = network(), network(1)
    optimizers = [clipped(model) for model in models]
    for k in range(3):
        loss_of(models[0], k).backward()
        optimizers[0].step()
    models[1].load_state_dict(models[0].state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for model, optimizer in zip(models, optimizers, strict=True):
        loss_of(model, 3).backward()
        optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_bounds_no_later_step(bad: float) -> None:
    model = network()
    optimizer = clipped(model)
    for k in range(2):
        loss_of(model, k).backward()
        optimizer.step()
    before = optimizer.param_groups[0]["last_grad_squares"]
    kept = [p.detach().clone() for p in model.parameters()]
    (loss_of(model, 2) * bad).backward()
    optimizer.step()
    assert optimizer.param_groups[0]["last_grad_squares"] == before
    with torch.no_grad():
        for p, value in zip(model.parameters(), kept, strict=True):
            p.copy_(value)
            optimizer.state[p]["momentum_buffer"].zero_()
    loss_of(model, 3).backward()
    optimizer.step()
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert not all(torch.equal(p, q) for p, q in zip(model.parameters(), kept, strict=True))


def test_groups_may_be_changed() -> None:
    model = network()
    optimizer = steprule.step_in_backward(
        model,
        lambda _: steprule.SGD(
            [{"params": model[0].parameters()}, {"params": model[2].parameters()}], lr=0.1
        ),
    )
    loss_of(model, 0).backward()
    optimizer.step()
    first = model[0].weight.detach().clone()
    last = model[2].bias.detach().clone()
    del optimizer.param_groups[0]
    optimizer.param_groups[0]["params"].pop(0)
    loss_of(model, 1).backward()
    optimizer.step()
    assert torch.equal(model[0].weight, first)
    assert not torch.equal(model[2].bias, last)


def test_explain_and_warnings_are_of_its_plans() -> None:
    weight = nn.Parameter(torch.randn(70, 80).t())
    model = nn.Linear(70, 80)
    model.weight = weight
    optimizer = steprule.step_in_backward(
        model, lambda p: steprule.Adam(p, state_format="int8", engine="fused")
    )
    assert {row.engine for row in optimizer.explain().rows} == {"none"}
    with pytest.warns(UserWarning, match="parameter 0 of group 0 runs on engine 'foreach'"):
        model(torch.ones(2, 70)).sum().backward()
    assert [row.engine for row in optimizer.explain().rows] == ["foreach", "fused"]


def test_loaded_state_takes_the_place_of_the_old() -> None:
    model = network()
    optimizer = steprule.step_in_backward(model, steprule.Adam)
    loss_of(model, 0).backward()
    packed = copy.deepcopy(optimizer.state_dict())
    old = [weakref.ref(x["exp_avg"]) for x in optimizer.state.values()]
    optimizer.load_state_dict(packed)
    assert all(reference() is None for reference in old)


def test_a_parameter_used_twice_is_stepped_once() -> None:
    pair = Pair("Adam")
    for model in (pair.after, pair.within):
        model.append(nn.Linear(4, 4))
        model.append(model[3])
    pair.usual.add_param_group({"params": pair.after[3].parameters()})
    pair.optimizer.add_param_group({"params": pair.within[3].parameters()})
    with torch.no_grad():
        for one, other in zip(pair.after[3].parameters(), pair.within[3].parameters(), strict=True):
            other.copy_(one)
    for k in range(4):
        pair.step(k)
    pair.check_same()
    step = pair.optimizer.state[pair.within[3].weight]["step"]
    assert step.item() == 4


def test_a_combined_optimizer_steps_in_backward() -> None:
    models = network(), network()

    def combined(model: nn.Sequential) -> steprule.Optimizer:
        return steprule.combine(
            steprule.Muon([p for p in model.parameters() if p.ndim == 2], lr=0.01),
            steprule.AdamW([p for p in model.parameters() if p.ndim < 2], lr=0.01),
        )

    usual = combined(models[0])
    optimizer = steprule.step_in_backward(models[1], lambda _: combined(models[1]))
    for k in range(4):
        usual.zero_grad()
        loss_of(models[0], k).backward()
        usual.step()
        loss_of(models[1], k).backward()
        optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


class DistributedDataParallel(nn.Module):
    """By its name a wrapper that averages gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


class Wrapper(DistributedDataParallel):
    """Somebody's own."""


@pytest.mark.parametrize(
    ("model", "make", "error", "text"),
    [
        (network(), steprule.LBFGS, TypeError, "without a closure, got LBFGS"),
        (network(), torch.optim.SGD, TypeError, "an optimizer of steprule .* got SGD"),
        (Wrapper(), steprule.SGD, TypeError, "DistributedDataParallel averages gradients"),
        (
            network(),
            lambda p: steprule.Adam(p, on_nonfinite="skip"),
            ValueError,
            "group 0: on_nonfinite='skip' must see all gradients",
        ),
        (
            network(),
            lambda p: steprule.Adam(p, differentiable=True),
            ValueError,
            "differentiable=True needs the gradients",
        ),
        (network(), steprule.Prodigy, ValueError, "Prodigy sums over several parameters"),
    ],
)
def test_what_cannot_step_in_backward_is_refused(
    model: nn.Module, make: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        steprule.step_in_backward(model, make)
    model(torch.ones(1, 8)).sum().backward() if isinstance(model, nn.Sequential) else None
    if isinstance(model, nn.Sequential):  # no hook was left behind
        assert all(p.grad is not None for p in model.parameters())


def test_a_group_that_cannot_is_not_added() -> None:
    pair = Pair("Adam")
    with pytest.raises(ValueError, match="group 1: on_nonfinite='raise'"):
        pair.optimizer.add_param_group(
            {"params": [torch.zeros(2, requires_grad=True)], "on_nonfinite": "raise"}
        )
    assert len(pair.optimizer.param_groups) == 1
    pair.step(0)
    pair.optimizer.param_groups[0]["on_nonfinite"] = "skip"
    with pytest.raises(ValueError, match="group 0: on_nonfinite='skip'"):
        loss_of(pair.within, 1).backward()


def test_errors_name_the_parameter_of_the_whole() -> None:
    model = network()
    optimizer = steprule.step_in_backward(model, steprule.SparseAdam)
    with pytest.raises(RuntimeError, match="parameter 3 of group 0 has one"):
        loss_of(model, 0).backward()
    assert not optimizer.state
    model = network()
    optimizer = steprule.step_in_backward(model, steprule.SGD)
    with pytest.raises(RuntimeError, match="create_graph=True keeps: parameter 3"):
        loss_of(model, 0).backward(create_graph=True)
    with (
        pytest.raises(ValueError, match="step in the backward pass"),
        steprule.accumulating(steprule.SGD(model.parameters())),
    ):
        pass


@pytest.fixture
def without_the_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_the_collector")
def test_dropping_it_frees_all() -> None:
    model = network()
    optimizer = steprule.step_in_backward(model, steprule.Adam)
    for k in range(3):
        loss_of(model, k).backward()
        optimizer.step()
    held = [weakref.ref(optimizer)]
    held += [weakref.ref(x["exp_avg"]) for x in optimizer.state.values()]
    del optimizer
    assert all(reference() is None for reference in held)
    loss_of(model, 3).backward()  # the hooks are gone
    assert all(p.grad is not None for p in model.parameters())
    parameter = weakref.ref(model[0].weight)
    del model
    assert parameter() is None
