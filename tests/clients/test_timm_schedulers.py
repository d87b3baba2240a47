"""timm's scheduler classes on our optimizers, each beside the same class on torch's.

timm's package asks for torchvision when it is imported; its modules `scheduler` and `optim` do not.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bare_timm import found_bare, timms
from client_runs import run_example
from torch import nn

import steprule

scheduler = timms("scheduler")

pytestmark = pytest.mark.filterwarnings(
    "ignore:PlateauLRScheduler is deprecated:FutureWarning"  # by timm 1.0.31
)
PACKAGES = (torch.optim, steprule)
# float32, 24 steps: the roundings of tests/helpers.py for 50.
CLOSE = {"rtol": 2e-5, "atol": 1e-5}
EPOCHS, UPDATES = 8, 3  # updates an epoch
WARM = {"warmup_t": 2, "warmup_lr_init": 1e-4}
CLASSES: dict[str, tuple[str, dict[str, Any]]] = {
    "cosine": ("CosineLRScheduler", {"t_initial": 6, "lr_min": 1e-3, **WARM}),
    "cosine in cycles": (
        "CosineLRScheduler",
        {"t_initial": 3, "cycle_mul": 1.5, "cycle_decay": 0.5, "cycle_limit": 3},
    ),
    "cosine with noise": (
        "CosineLRScheduler",
        {"t_initial": 6, "noise_range_t": [2, 6], "noise_seed": 5},
    ),
    "tanh": ("TanhLRScheduler", {"t_initial": 6, "lr_min": 1e-3, **WARM}),
    "poly": ("PolyLRScheduler", {"t_initial": 6, "power": 0.5, "warmup_prefix": True, **WARM}),
    "step": ("StepLRScheduler", {"decay_t": 2, "decay_rate": 0.5, **WARM}),
    "multistep": ("MultiStepLRScheduler", {"decay_t": [3, 5], "decay_rate": 0.3, **WARM}),
    "plateau": ("PlateauLRScheduler", {"patience_t": 0, "decay_rate": 0.5, **WARM}),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 3))


def groups_of(net: nn.Sequential) -> list[dict[str, Any]]:
    """Layer-wise rates as timm keeps them: `lr_scale`, a key of its own, in each group."""
    return [
        {"params": [*net[0].parameters()], "lr_scale": 0.3},
        {"params": [*net[2].parameters()], "lr_scale": 1.0, "weight_decay": 0.1},
    ]


def epochs(net: nn.Module, optimizer: Any, plan: Any, first: int, last: int) -> list[list[float]]:
    """timm's loop: `step_update` at each update, `step` with a metric at each epoch's end."""
    rates = []
    for epoch in range(first, last):
        updates = epoch * UPDATES
        for i in range(UPDATES):
            generator = torch.Generator().manual_seed(100 * epoch + i)
            optimizer.zero_grad()
            net(torch.randn(5, 6, generator=generator)).square().mean().backward()
            optimizer.step()
            updates += 1
            plan.step_update(num_updates=updates)
        plan.step(epoch + 1, metric=[3.0, 2.0, 2.5, 2.5, 1.0, 1.5, 1.5, 1.5][epoch])
        rates.append([group["lr"] for group in optimizer.param_groups])
    return rates


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("optimizer_name", ["SGD", "AdamW"])
def test_a_schedule_drives_ours_as_torchs(name: str, optimizer_name: str) -> None:
    cls, options = CLASSES[name]
    found = []
    for package in PACKAGES:
        net = network()
        optimizer = getattr(package, optimizer_name)(groups_of(net), lr=0.05)
        plan = getattr(scheduler, cls)(optimizer, **options)
        rates = epochs(net, optimizer, plan, 0, EPOCHS)
        found.append((rates, [p.detach() for p in net.parameters()]))
    torch.testing.assert_close(*reversed(found), **CLOSE)
    assert found[0][0] == found[1][0]
    # timm multiplies each group's rate by its lr_scale
    for first, second in found[1][0]:
        assert first == pytest.approx(0.3 * second, rel=1e-6)


def test_updates_may_be_what_counts() -> None:
    found = []
    for package in PACKAGES:
        net = network()
        optimizer = package.AdamW(groups_of(net), lr=0.05)
        plan = scheduler.CosineLRScheduler(
            optimizer, t_initial=18, t_in_epochs=False, warmup_t=3, warmup_lr_init=1e-4
        )
        found.append((epochs(net, optimizer, plan, 0, EPOCHS), [*net.parameters()]))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_any_option_of_ours_may_be_the_field() -> None:
    """`param_group_field`, the key that a schedule sets."""
    net = network()
    optimizer = steprule.AdamW(net.parameters(), lr=0.05, weight_decay=0.2, engine="fused")

    class Halved(timms("scheduler.scheduler").Scheduler):  # type: ignore[misc]
        def _get_lr(self, t: int) -> list[float]:
            return [value * 0.5**t for value in self.base_values]

    epochs(net, optimizer, Halved(optimizer, param_group_field="weight_decay"), 0, 3)
    assert optimizer.param_groups[0]["weight_decay"] == pytest.approx(0.2 / 8)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "plateau"])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str) -> None:
    """But for timm's plateau, which does not save what it has seen."""
    cls, options = CLASSES[name]

    def made() -> Any:
        net = network()
        optimizer = steprule.AdamW(groups_of(net), lr=0.05)
        return net, optimizer, getattr(scheduler, cls)(optimizer, **options)

    whole, half, resumed = made(), made(), made()
    expected = epochs(*whole, 0, EPOCHS)
    epochs(*half, 0, 4)
    for new, old in zip(resumed, half, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert epochs(*resumed, 4, EPOCHS) == expected[4:]
    assert all(map(torch.equal, resumed[0].parameters(), whole[0].parameters()))


@pytest.mark.parametrize("kind", ["cosine", "tanh", "step", "multistep", "plateau", "poly"])
def test_the_factory_of_training_scripts(kind: str) -> None:
    """`create_scheduler_v2`, as timm's train.py calls it."""
    found = []
    for package in PACKAGES:
        net = network()
        optimizer = package.SGD(groups_of(net), lr=0.05, momentum=0.9)
        plan, count = scheduler.create_scheduler_v2(
            optimizer,
            sched=kind,
            num_epochs=EPOCHS,
            decay_epochs=2,
            decay_milestones=[2, 4],
            decay_rate=0.5,
            patience_epochs=0,
            warmup_epochs=2,
            warmup_lr=1e-4,
            min_lr=1e-3,
            updates_per_epoch=UPDATES,
        )
        found.append((count, epochs(net, optimizer, plan, 0, EPOCHS), [*net.parameters()]))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_groups_of_timms_layer_decay() -> None:
    """`param_groups_layer_decay` writes `lr_scale` and `weight_decay`; ours takes its groups."""
    groups = timms("optim._param_groups")
    found = []
    for package in PACKAGES:
        net = network()
        made = groups.param_groups_layer_decay(net, weight_decay=0.1, layer_decay=0.7)
        optimizer = package.AdamW(made, lr=0.05)
        plan = scheduler.CosineLRScheduler(optimizer, t_initial=6, **WARM)
        rates = epochs(net, optimizer, plan, 0, EPOCHS)
        assert len({tuple(row) for row in rates}) > 1
        found.append((rates, [*net.parameters()]))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_timms_factory_makes_ours_by_the_class() -> None:
    """`create_optimizer_v2` looks a name up; a class of ours goes in through its registry."""
    factory = timms("optim._optim_factory")
    found = []
    for package in PACKAGES:
        registry = factory.OptimizerRegistry()
        registry.register(factory.OptimInfo(name="own", opt_class=package.AdamW))
        net = network()
        optimizer = registry.create_optimizer(
            net, "own", lr=0.05, weight_decay=0.1, momentum=0.9, layer_decay=0.7
        )
        assert type(optimizer) is package.AdamW
        plan = scheduler.CosineLRScheduler(optimizer, t_initial=6)
        found.append((epochs(net, optimizer, plan, 0, 4), [*net.parameters()]))
    torch.testing.assert_close(*reversed(found), **CLOSE)


def test_the_example_of_the_docs() -> None:
    with found_bare():
        run_example("timm's schedulers")
