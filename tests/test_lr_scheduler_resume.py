"""Resuming: whatever is built or loaded first, the lrs are those of the uninterrupted run."""

from __future__ import annotations

import copy
import io
import pickle
import random
from typing import Any

import pytest
import torch
from lr_scheduler_cases import (
    CASES,
    COMPOSITES,
    OURS,
    PURE,
    TORCH,
    close,
    halve_by_hundreds,
    in_force,
    make_optimizer,
    run,
)

# torch 2.5's SequentialLR gives its members an epoch, and so makes them warn.
pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
LENGTH = 90
NESTED: dict[str, Any] = {
    "warmup-then-plateau": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, total_iters=5), m.ReduceLROnPlateau(o, patience=1)], [5]
    ),
    "chain-with-plateau": lambda m, o: m.ChainedScheduler(
        [m.ExponentialLR(o, 0.99), m.ReduceLROnPlateau(o, patience=2, factor=0.5)]
    ),
    "depth-3": lambda m, o: m.SequentialLR(
        o,
        [
            m.ChainedScheduler([m.LinearLR(o, total_iters=4), m.ExponentialLR(o, 0.97)]),
            m.ChainedScheduler(
                [
                    m.SequentialLR(o, [m.ConstantLR(o), m.CosineAnnealingLR(o, 20)], [7]),
                    m.MultiStepLR(o, [3, 30], 0.5),
                ]
            ),
        ],
        [12],
    ),
    "sequential-first-in-sequential": lambda m, o: m.SequentialLR(
        o,
        [m.SequentialLR(o, [m.ConstantLR(o), m.ExponentialLR(o, 0.9)], [4]), m.StepLR(o, 9)],
        [15],
    ),
    "plateau-at-depth-3": lambda m, o: m.ChainedScheduler(
        [
            m.SequentialLR(
                o,
                [m.LinearLR(o), m.ChainedScheduler([m.ReduceLROnPlateau(o, patience=1)])],
                [5],
            ),
            m.StepLR(o, 10, 0.9),
        ]
    ),
}
EVERY = (
    CASES
    | COMPOSITES
    | NESTED
    | {"ReduceLROnPlateau": lambda m, o: m.ReduceLROnPlateau(o, patience=2, cooldown=1)}
)
ORDERS = ["O LO S LS", "O S LO LS", "O S LS LO", "O S LS"]


def go(optimizer: Any, scheduler: Any, first: int, last: int, hand: int = -1) -> list[list[float]]:
    """Epochs `first` to `last`, with a metric that stops improving now and then."""
    takes_metric = OURS.composite.wants_metrics(scheduler)
    seen = []
    for epoch in range(first, last):
        if epoch == hand:
            optimizer.param_groups[1]["lr"] = 0.0123
        seen.append(in_force(optimizer))
        optimizer.step()
        scheduler.step(abs(7 - epoch % 15) + 1.0) if takes_metric else scheduler.step()
    return seen


def saved(thing: Any) -> Any:
    """A state dict as it comes back from a file, loaded the safe way."""
    buffer = io.BytesIO()
    torch.save(thing, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def resumed(name: str, order: str, states: dict[str, Any]) -> tuple[Any, Any]:
    optimizer: Any = None
    scheduler: Any = None
    for action in order.split():
        if action == "O":
            optimizer = make_optimizer()
        elif action == "S":
            scheduler = EVERY[name](OURS, optimizer)
        elif action == "LO":
            optimizer.load_state_dict(states["optimizer"])
        else:
            scheduler.load_state_dict(states["scheduler"])
    return optimizer, scheduler


@pytest.mark.parametrize("hand", [-1, 3])
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", EVERY)
def test_resumes_exactly_in_any_order(name: str, order: str, hand: int) -> None:
    optimizer = make_optimizer()
    whole = go(optimizer, EVERY[name](OURS, optimizer), 0, LENGTH, hand)
    for stop in random.Random(name + order).sample(range(1, LENGTH), 4):
        optimizer = make_optimizer()
        scheduler = EVERY[name](OURS, optimizer)
        assert go(optimizer, scheduler, 0, stop, hand) == whole[:stop]
        states = saved({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
        assert go(*resumed(name, order, states), stop, LENGTH, hand) == whole[stop:]


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_copy_runs_on_as_the_original(name: str, copied: Any) -> None:
    optimizer = make_optimizer()
    scheduler = EVERY[name](OURS, optimizer)
    go(optimizer, scheduler, 0, 17)
    twin = copied(scheduler)
    assert twin.optimizer is not optimizer
    assert go(twin.optimizer, twin, 17, 60) == go(optimizer, scheduler, 17, 60)


@pytest.mark.parametrize("load_optimizer", [True, False])
@pytest.mark.parametrize("name", [*PURE, "MultiplicativeLR"])
def test_last_epoch_stands_where_a_run_would(name: str, load_optimizer: bool) -> None:
    for stop in (1, 2, 9, 10, 17, 60):
        optimizer = make_optimizer()
        scheduler = CASES[name](OURS, optimizer)
        run(optimizer, scheduler, stop)
        fresh = make_optimizer()
        options: dict[str, Any] = {"last_epoch": stop - 1}
        if load_optimizer:
            fresh.load_state_dict(optimizer.state_dict())
        else:
            options["initial_lr"] = [group["initial_lr"] for group in optimizer.param_groups]
        again = CASES[name](OURS, fresh, **options)
        assert again.last_epoch == stop
        if name == "MultiplicativeLR" or load_optimizer or "momentum" not in name:
            assert close(in_force(fresh), in_force(optimizer))
        assert close(
            [x for row in run(fresh, again, 20) for x in row],
            [x for row in run(optimizer, scheduler, 20) for x in row],
        )


@pytest.mark.parametrize("members_too", [True, False])
def test_a_sequence_continues_from_last_epoch(members_too: bool) -> None:
    def build(optimizer: Any, member: int = -1, whole: int = -1) -> Any:
        return OURS.SequentialLR(
            optimizer,
            [
                OURS.LinearLR(optimizer, total_iters=4, last_epoch=member),
                OURS.ExponentialLR(optimizer, 0.9, last_epoch=member),
            ],
            [4],
            last_epoch=whole,
        )

    for stop in range(1, 12):
        optimizer = make_optimizer()
        scheduler = build(optimizer)
        run(optimizer, scheduler, stop)
        fresh = make_optimizer()
        fresh.load_state_dict(optimizer.state_dict())
        again = build(fresh, stop - 1 if members_too else -1, stop - 1)
        assert in_force(fresh) == in_force(optimizer)
        assert run(fresh, again, 10) == run(optimizer, scheduler, 10)


def test_last_epoch_without_an_initial_lr_says_what_to_do() -> None:
    with pytest.raises(KeyError, match=r"initial_lr.*load the optimizer's state first, or pass"):
        OURS.StepLR(make_optimizer(), 3, last_epoch=4)


@pytest.mark.parametrize("name", CASES | COMPOSITES)
def test_states_go_both_ways_between_torch_and_us(name: str) -> None:
    build = (CASES | COMPOSITES)[name]
    for here, there in ((OURS, TORCH), (TORCH, OURS)):
        optimizer = make_optimizer()
        scheduler = build(here, optimizer)
        run(optimizer, scheduler, 23)
        other = make_optimizer()
        moved = build(there, other)
        # torch 2.5 saves these, and needs neither in a state that it loads.
        needed = moved.state_dict().keys() - {"verbose", "anneal_func"}
        assert needed <= scheduler.state_dict().keys() or here is TORCH
        other.load_state_dict(optimizer.state_dict())
        moved.load_state_dict(copy.deepcopy(scheduler.state_dict()))
        for mine, expected in zip(
            run(other, moved, 40), run(optimizer, scheduler, 40), strict=True
        ):
            assert close(mine, expected, 1e-11)


def test_plateau_states_go_both_ways() -> None:
    for here, there in ((OURS, TORCH), (TORCH, OURS)):
        sides = []
        for module in (here, there):
            optimizer = make_optimizer()
            sides.append((optimizer, module.ReduceLROnPlateau(optimizer, patience=2)))
        (first, scheduler), (second, moved) = sides
        for metric in (3.0, 4.0, 4.0):
            scheduler.step(metric)
        second.load_state_dict(first.state_dict())
        moved.load_state_dict(scheduler.state_dict())
        for metric in (4.0, 4.0, 2.0, 5.0, 5.0, 5.0):
            scheduler.step(metric)
            moved.step(metric)
            assert in_force(first) == in_force(second)


@pytest.mark.parametrize(
    ("build", "old", "new", "keep"),
    [
        (lambda o, n: OURS.CosineAnnealingLR(o, n), 20, 50, "T_max"),
        (lambda o, n: OURS.MultiStepLR(o, n, 0.5), [5, 30], [5, 12], "milestones"),
        (lambda o, n: OURS.OneCycleLR(o, 1.0, n), 20, 60, "total_steps"),
        (lambda o, n: OURS.ExponentialLR(o, n), 0.9, 0.99, "gamma"),
    ],
)
def test_a_resumed_run_can_keep_new_values(build: Any, old: Any, new: Any, keep: str) -> None:
    optimizer = make_optimizer()
    scheduler = build(optimizer, old)
    run(optimizer, scheduler, 15)
    fresh = make_optimizer()
    fresh.load_state_dict(optimizer.state_dict())
    changed = build(fresh, new)
    changed.load_state_dict(scheduler.state_dict(), keep=[keep])
    plain = make_optimizer()
    expected = build(plain, new)
    run(plain, expected, 15)
    assert close(in_force(fresh), in_force(plain))
    assert all(
        close(a, b) for a, b in zip(run(fresh, changed, 30), run(plain, expected, 30), strict=True)
    )


def test_a_resumed_run_can_be_given_a_new_lr() -> None:
    optimizer = make_optimizer()
    scheduler = OURS.ExponentialLR(optimizer, 0.5)
    run(optimizer, scheduler, 3)
    state = scheduler.state_dict()

    fresh = make_optimizer(lrs=(8.0, 8.0, 8.0))
    again = OURS.ExponentialLR(fresh, 0.5)
    again.load_state_dict(state, keep=["base_lrs"])
    assert [group["lr"] for group in fresh.param_groups] == [1.0] * 3

    fresh = make_optimizer(lrs=(8.0, 8.0, 8.0))
    again = OURS.ExponentialLR(fresh, 0.5)
    again.load_state_dict(state, keep=["lr"])
    again.step()
    assert [group["lr"] for group in fresh.param_groups] == [4.0] * 3

    with pytest.raises(ValueError, match="keep: no gama here; there are lr, base_lrs, gamma"):
        again.load_state_dict(state, keep=["gama"])


def test_loading_leaves_the_state_dict_alone_and_shares_nothing() -> None:
    for name in ("LambdaLR", "MultiStepLR", "OneCycleLR"):
        optimizer = make_optimizer()
        scheduler = CASES[name](OURS, optimizer)
        state = scheduler.state_dict()
        before = copy.deepcopy(state)
        again = CASES[name](OURS, make_optimizer())
        again.load_state_dict(state)
        run(again.optimizer, again, 5)
        run(optimizer, scheduler, 5)
        assert state == before


def test_another_lambda_at_resume_is_told() -> None:
    scheduler = OURS.LambdaLR(make_optimizer(), lambda epoch: 0.95**epoch)
    other = OURS.LambdaLR(make_optimizer(), lambda epoch: 0.9**epoch)
    same = OURS.LambdaLR(make_optimizer(), lambda epoch: 0.95**epoch)
    state = saved(scheduler.state_dict())
    same.load_state_dict(state)
    with pytest.warns(UserWarning, match="lr_lambda of group 0 .* at epoch 1 it gives 0.9"):
        other.load_state_dict(state)
    other.load_state_dict(state, keep=["lr_lambdas"])


class Decay:
    """A callable object: its attributes are saved."""

    def __init__(self, rate: float) -> None:
        self.rate = rate

    def __call__(self, epoch: int) -> float:
        return self.rate**epoch


def test_callable_objects_are_saved_by_their_attributes() -> None:
    scheduler = OURS.LambdaLR(make_optimizer(), [Decay(0.5), halve_by_hundreds, Decay(0.25)])
    again = OURS.LambdaLR(make_optimizer(), [Decay(0.1), halve_by_hundreds, Decay(0.1)])
    again.load_state_dict(saved(scheduler.state_dict()))
    assert again.lr_at(2) == scheduler.lr_at(2)
