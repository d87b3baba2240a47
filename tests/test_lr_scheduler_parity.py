"""Our schedulers beside torch's, step for step: what torch computes stays the default number."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
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

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before:UserWarning"),
    # torch 2.5's SequentialLR gives its members an epoch, and so makes them warn.
    pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning"),
]
ALL = CASES | COMPOSITES
PAIRS = list(itertools.permutations(CASES, 2))


def pair(name: str, kind: str = "torch.SGD") -> tuple[Any, Any, Any, Any]:
    ours, theirs = make_optimizer(kind), make_optimizer(kind.replace("steprule", "torch"))
    return ours, ALL[name](OURS, ours), theirs, ALL[name](TORCH, theirs)


def skip_swalr_of_older_torch(member: str) -> None:
    """Leave out a SWALR that takes over: it goes by its steps, of which there was one more."""
    if member == "SWALR" and not hasattr(TORCH.LRScheduler, "_update_lr"):
        pytest.skip("this torch's SequentialLR starts a member by a step, which SWALR counts")


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ALL)
def test_agrees_with_torch_for_300_steps(name: str, kind: str) -> None:
    length = 99 if name == "sequential-of-three" else 300
    ours, scheduler, theirs, reference = pair(name, kind)
    for mine, expected in zip(
        run(ours, scheduler, length), run(theirs, reference, length), strict=True
    ):
        assert close(mine, expected)
    assert close(scheduler.get_last_lr(), reference.get_last_lr())


@pytest.mark.parametrize("name", CASES)
@settings(max_examples=15, deadline=None)
@given(changes=st.dictionaries(st.integers(0, 99), st.floats(1e-4, 10), max_size=5))
def test_an_lr_changed_by_hand_counts_as_in_torch(name: str, changes: dict[int, float]) -> None:
    ours, scheduler, theirs, reference = pair(name)
    for epoch in range(100):
        for optimizer, stepped in ((ours, scheduler), (theirs, reference)):
            if epoch in changes:
                optimizer.param_groups[1]["lr"] *= changes[epoch]
            optimizer.step()
            stepped.step()
        assert close(in_force(ours), in_force(theirs), 1e-11)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_on_one_optimizer_chain_as_in_torch(first: str, second: str) -> None:
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        schedulers = [CASES[name](module, optimizer) for name in (first, second)]
        sides.append((optimizer, schedulers))
    for _ in range(110):
        for optimizer, schedulers in sides:
            optimizer.step()
            for scheduler in schedulers:
                scheduler.step()
        assert close(in_force(sides[0][0]), in_force(sides[1][0]), 1e-11)


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_one_after_another_runs_as_in_torch(first: str, second: str) -> None:
    skip_swalr_of_older_torch(second)
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        members = [CASES[name](module, optimizer) for name in (first, second)]
        sides.append(run(optimizer, module.SequentialLR(optimizer, members, [9]), 60))
    assert all(close(mine, expected, 1e-11) for mine, expected in zip(*sides, strict=True))


@pytest.mark.parametrize("name", [name for name in CASES if name != "CosineAnnealingWarmRestarts"])
def test_step_to_an_epoch_uses_the_closed_form_as_in_torch(name: str) -> None:
    ours, scheduler, theirs, reference = pair(name)
    for epoch in (5, 3, 50, 49, 0):
        for optimizer, stepped in ((ours, scheduler), (theirs, reference)):
            optimizer.step()
            if name.startswith("SWALR"):
                # torch's goes by the number of calls, so only going on can be compared.
                stepped.step()
                continue
            with pytest.warns(UserWarning, match="epoch"):
                stepped.step(epoch)
        if name != "PolynomialLR-fraction":
            assert close(in_force(ours), in_force(theirs), 1e-11)


def test_warm_restarts_take_fractions_of_an_epoch_as_in_torch() -> None:
    ours, scheduler, theirs, reference = pair("CosineAnnealingWarmRestarts")
    for epoch in (0.0, 0.5, 3.25, 9.75, 10.0, 29.5, 30.0, 71.0, 12.0):
        for optimizer, stepped in ((ours, scheduler), (theirs, reference)):
            optimizer.step()
            stepped.step(epoch)
        assert close(in_force(ours), in_force(theirs))
        assert scheduler.last_epoch == reference.last_epoch


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("threshold_mode", ["rel", "abs"])
@settings(max_examples=25, deadline=None)
@given(
    metrics=st.lists(st.floats(-5, 5), min_size=5, max_size=60),
    patience=st.integers(0, 3),
    cooldown=st.integers(0, 3),
)
def test_plateau_agrees_with_torch(
    mode: str, threshold_mode: str, metrics: list[float], patience: int, cooldown: int
) -> None:
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        scheduler = module.ReduceLROnPlateau(
            optimizer,
            mode,
            patience=patience,
            cooldown=cooldown,
            threshold=0.01,
            threshold_mode=threshold_mode,
            min_lr=[0.001, 0.0, 0.02],
        )
        sides.append((optimizer, scheduler))
    for metric in metrics:
        for _, scheduler in sides:
            scheduler.step(metric)
        assert close(in_force(sides[0][0]), in_force(sides[1][0]))
        assert sides[0][1].num_bad_epochs == sides[1][1].num_bad_epochs


@pytest.mark.parametrize("name", CASES)
def test_a_tensor_lr_gives_the_sequence_of_a_float_lr(name: str) -> None:
    shared = torch.tensor(0.25)
    tensors = make_optimizer("torch.Adam", (shared, shared, torch.tensor(0.5)))
    floats = make_optimizer("torch.Adam", (0.25, 0.25, 0.5))
    scheduler, reference = CASES[name](OURS, tensors), CASES[name](OURS, floats)
    for group in tensors.param_groups:
        assert isinstance(group["lr"], torch.Tensor)
    for mine, expected in zip(
        run(tensors, scheduler, 120), run(floats, reference, 120), strict=True
    ):
        assert close(mine, expected, 2e-7)
    assert all(isinstance(lr, torch.Tensor) for lr in scheduler.get_last_lr())
    held = {id(group["lr"]) for group in tensors.param_groups}
    assert not held & {id(lr) for lr in [*scheduler.base_lrs, *scheduler.get_last_lr()]}


@pytest.mark.parametrize("name", CASES)
def test_torchs_composites_drive_ours(name: str) -> None:
    skip_swalr_of_older_torch(name)
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        members = [module.LinearLR(optimizer, total_iters=4), CASES[name](module, optimizer)]
        sides.append(run(optimizer, TORCH.SequentialLR(optimizer, members, [4]), 40))
    assert all(close(mine, expected, 1e-11) for mine, expected in zip(*sides, strict=True))


@pytest.mark.parametrize("gamma", [0.3, 1.5])
def test_a_hyperparameter_changed_while_running_counts_from_there(gamma: float) -> None:
    ours, scheduler, theirs, reference = pair("ExponentialLR")
    for _, stepped in ((ours, scheduler), (theirs, reference)):
        for epoch in range(30):
            if epoch == 11:
                stepped.gamma = gamma
            if epoch == 20:
                stepped.base_lrs = [5.0, 5.0, 5.0]
            stepped.step()
    assert close(in_force(ours), in_force(theirs))


@pytest.mark.parametrize("kind", [kind for kind in OPTIMIZERS if kind.startswith("steprule")])
@pytest.mark.parametrize("name", ALL)
def test_torchs_schedulers_drive_our_optimizers(name: str, kind: str) -> None:
    ours, theirs = make_optimizer(kind), make_optimizer(kind.replace("steprule", "torch"))
    assert run(ours, ALL[name](TORCH, ours), 60) == run(theirs, ALL[name](TORCH, theirs), 60)
