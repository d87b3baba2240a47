"""Schedules in place of numbers: in any option of any optimizer, per group, through resume."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from helpers import Case, gradients, make_params, rule_optimizers, run

import steprule
from steprule.rules import OPTIMIZERS
from steprule.schedules import Schedule, constant, cosine, linear, piecewise


@pytest.mark.parametrize("name", rule_optimizers())
def test_scheduled_lr_equals_setting_it_by_hand(name: str) -> None:
    lr = cosine(0.02, 0.001, steps=6).warmup(2)
    params, twins = make_params(name), make_params(name)
    ours = OPTIMIZERS[name.lower()](params, lr=lr)
    by_hand = OPTIMIZERS[name.lower()](twins, lr=lr(0))
    for i, _ in enumerate(gradients(params, 10)):
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad
        by_hand.param_groups[0]["lr"] = lr(i)
        assert ours.param_groups[0]["lr"] == lr(i)
        ours.step()
        by_hand.step()
    assert all(map(torch.equal, params, twins))


def test_any_option_and_any_group() -> None:
    """Weight decay, betas and lr of their own for each group; the number in force is shown."""
    decay, beta1 = linear(0.1, 0.0, steps=4), linear(0.8, 0.9, steps=4)
    first, second = make_params("AdamW"), make_params("AdamW", seed=5)
    optimizer = steprule.AdamW(
        [{"params": first}, {"params": second, "lr": piecewise({0: 0.1, 3: 0.01})}],
        lr=1e-3,
        weight_decay=decay,
        betas=(beta1, 0.99),
    )
    for i, _ in enumerate(gradients([*first, *second], 6)):
        one, two = optimizer.param_groups
        assert (one["lr"], two["lr"]) == (1e-3, 0.1 if i < 3 else 0.01)
        assert one["weight_decay"] == two["weight_decay"] == decay(i)
        assert one["betas"] == (beta1(i), 0.99)
        optimizer.step()


@pytest.mark.parametrize("at", [0, 1, 4])
def test_resume_equals_uninterrupted(at: int) -> None:
    """The state dict carries the schedule; a plain lr at construction does not matter."""
    case = Case("AdamW", {"lr": cosine(0.02, 0, steps=8), "weight_decay": linear(0.1, 0, steps=8)})
    whole, finished = run(case.ours, case, steps=9)
    params = make_params("AdamW")
    optimizer = case.ours(params, **case.options)
    steps = gradients(params, 9)
    for _ in range(at):
        next(steps)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    resumed = case.ours(params, lr=123.0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for _ in steps:
        resumed.step()
    assert all(map(torch.equal, params, whole))
    assert resumed.param_groups[0]["lr"] == finished.param_groups[0]["lr"]


def test_state_dict_with_schedules_loads_into_torch() -> None:
    params = make_params("Adam")
    ours = steprule.Adam(params, lr=cosine(0.02, 0, steps=8))
    next(gradients(params, 1))
    ours.step()
    theirs = torch.optim.Adam(params)
    theirs.load_state_dict(ours.state_dict())
    theirs.step()
    assert theirs.param_groups[0]["lr"] == cosine(0.02, 0, steps=8)(1)


def test_a_group_added_later_joins_in_step() -> None:
    params, late = make_params("SGD"), make_params("SGD", seed=3)
    optimizer = steprule.SGD(params, lr=linear(1.0, 0.0, steps=10))
    for _ in gradients(params, 4):
        optimizer.step()
    optimizer.add_param_group({"params": late})
    assert optimizer.param_groups[1]["lr"] == optimizer.param_groups[0]["lr"] == 0.6


def test_no_schedule_leaves_no_trace() -> None:
    optimizer = steprule.SGD(make_params("SGD"), lr=0.1)
    assert set(optimizer.param_groups[0]) == set(
        torch.optim.SGD(make_params("SGD"), lr=0.1).param_groups[0]
    )


def test_copies_go_their_own_way() -> None:
    params = make_params("SGD")
    optimizer = steprule.SGD(params, lr=linear(1.0, 0.0, steps=10))
    twin = copy.deepcopy(optimizer)
    next(gradients(params, 1))
    optimizer.step()
    assert (optimizer.param_groups[0]["lr"], twin.param_groups[0]["lr"]) == (0.9, 1.0)


def test_a_first_value_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="lr must be a finite number >= 0"):
        steprule.SGD(make_params("SGD"), lr=linear(-1.0, 0.0, steps=10))


def test_an_optimizer_with_a_step_of_its_own_follows_schedules_too() -> None:
    params = make_params("SGD")
    optimizer = steprule.LBFGS(params, lr=linear(1.0, 0.0, steps=4))
    seen = []
    for _ in range(3):

        def closure() -> torch.Tensor:
            optimizer.zero_grad()
            loss = torch.stack([param.square().sum() for param in params]).sum()
            loss.backward()
            return loss

        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step(closure)
    assert seen == [1.0, 0.75, 0.5]


def test_flags_cannot_be_scheduled() -> None:
    for name in ("nesterov", "maximize", "foreach"):
        with pytest.raises(TypeError, match=f"{name} is a flag"):
            steprule.SGD(make_params("SGD"), lr=0.1, momentum=0.9, **{name: constant(1)})


@pytest.mark.parametrize("new", [0.5, linear(0.5, 0.0, steps=5)])
def test_a_resumed_run_can_be_given_another_lr(new: float | Schedule) -> None:
    """Loading brings the schedule back; setting the learning rate afterwards replaces it."""
    params = make_params("SGD")
    optimizer = steprule.SGD(params, lr=linear(1.0, 0.0, steps=10), momentum=constant(0.9))
    for _ in gradients(params, 2):
        optimizer.step()
    resumed = steprule.SGD(params, lr=0.1)
    resumed.load_state_dict(optimizer.state_dict())
    steprule.set_learning_rate(resumed, new)
    for i in (2, 3, 4):
        expected = new(i) if isinstance(new, Schedule) else new
        assert resumed.param_groups[0]["lr"] == expected
        resumed.step()


def test_an_lr_is_driven_by_one_thing_at_a_time() -> None:
    optimizer = steprule.SGD(make_params("SGD"), lr=linear(1.0, 0.0, steps=10))
    with pytest.raises(ValueError, match=r"optimizer: the lr of group 0 follows linear\(1, 0"):
        steprule.lr_scheduler.StepLR(optimizer, 3)
    with pytest.raises(TypeError, match="SGD of torch cannot follow"):
        steprule.set_learning_rate(torch.optim.SGD(make_params("SGD")), linear(1, 0, steps=3))


def test_a_scheduler_of_torchs_beside_a_schedule_is_warned_of() -> None:
    """Transformers' Trainer makes one unless it gets one; what it writes counts."""
    param = torch.zeros(1, requires_grad=True)
    optimizer = steprule.SGD([param], lr=linear(1.0, 0.0, steps=4))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    param.grad = torch.ones(1)
    optimizer.step()  # at the first step the two agree
    scheduler.step()
    with pytest.warns(UserWarning, match=r"lr of group 0 follows linear\(1, 0, steps=4\), but"):
        optimizer.step()
    assert param.item() == -2.0


@pytest.mark.parametrize("is_hooked", [False, True])
def test_a_step_that_is_passed_over_moves_no_schedule(is_hooked: bool) -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.Adam([param], lr=linear(1, 0, steps=10), on_nonfinite="skip")
    if is_hooked:
        optimizer.register_step_post_hook(lambda *_: None)
    for value in (1.0, float("nan"), 1.0):
        param.grad = torch.full((3,), value)
        optimizer.step()
    assert optimizer.param_groups[0]["schedule_step"] == 2
