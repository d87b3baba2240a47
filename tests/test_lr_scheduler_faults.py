"""What torch's schedulers get wrong, or refuse, and these do not."""

from __future__ import annotations

import gc
import math
import warnings
import weakref
from typing import Any

import pytest
import torch
import torch.optim.lr_scheduler as torch_schedulers
from hypothesis import given, settings
from hypothesis import strategies as st
from lr_scheduler_cases import (
    CASES,
    COMPOSITES,
    OPTIMIZERS,
    OURS,
    close,
    in_force,
    make_optimizer,
    run,
    swalr,
)

ALL = CASES | COMPOSITES


def lrs(optimizer: Any) -> list[float]:
    return [float(group["lr"]) for group in optimizer.param_groups]


def train(optimizer: Any, gradient: float = 1.0) -> None:
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = torch.full_like(param, gradient)
    optimizer.step()


# ---- asking ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ALL)
def test_lr_at_is_the_lr_used_and_has_no_side_effects(name: str, kind: str) -> None:
    optimizer = make_optimizer(kind)
    scheduler = ALL[name](OURS, optimizer)
    run(optimizer, scheduler, 3)
    before = in_force(optimizer), scheduler.state_dict()
    foreseen = [scheduler.lr_at(epoch) for epoch in range(80)]
    assert (in_force(optimizer), scheduler.state_dict()) == before
    for epoch in range(3, 80):
        assert lrs(optimizer) == foreseen[epoch]
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize("name", ALL)
def test_schedule_is_the_pure_form(name: str) -> None:
    scheduler = ALL[name](OURS, make_optimizer())
    for index, schedule in enumerate(scheduler.schedules):
        for epoch in range(0, 250, 7):
            assert math.isclose(
                schedule(epoch), scheduler.lr_at(epoch)[index], rel_tol=1e-12, abs_tol=1e-16
            )
    assert scheduler.schedule(5) == scheduler.schedules[0](5)


@pytest.mark.parametrize(
    "build",
    [
        lambda o: OURS.CosineAnnealingLR(o, 7.5, 0.01),
        lambda o: OURS.StepLR(o, 3, -0.5),
        lambda o: OURS.PolynomialLR(o, 5, power=0),
        lambda o: OURS.OneCycleLR(o, [1.0, 0.0, 2.0], 40),  # one group frozen
    ],
)
def test_what_torch_takes_and_the_shapes_do_not_has_a_schedule(build: Any) -> None:
    scheduler = build(make_optimizer())
    for epoch in range(40):
        values = [schedule(epoch) for schedule in scheduler.schedules]
        assert values == pytest.approx(scheduler.lr_at(epoch), rel=1e-12, abs=1e-15)


def test_the_schedule_of_a_cyclic_lr_can_be_written_down_whatever_its_sizes() -> None:
    # 14 / (14 + 11) * (14 + 11) is not 14.
    scheduler = OURS.CyclicLR(make_optimizer(), 0.1, 1.0, 14, 11)
    assert repr(scheduler.schedule) == "cyclic(0.1, 1, up=14, down=11)"


@pytest.mark.parametrize("name", ALL)
def test_get_lr_gives_a_user_the_lr_in_force(name: str) -> None:
    optimizer = make_optimizer()
    scheduler = ALL[name](OURS, optimizer)
    for _ in range(40):
        assert scheduler.get_lr() == scheduler.get_lr() == lrs(optimizer)
        assert scheduler.get_lr() == scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()


def test_the_cosine_follows_its_formula_over_many_steps() -> None:
    optimizer = make_optimizer(lrs=(0.1,))
    scheduler = OURS.CosineAnnealingLR(optimizer, 1000, eta_min=0.01)
    optimizer.step()
    for epoch in range(1, 100_001):
        scheduler.step()
        if epoch % 997 == 0:
            formula = 0.01 + 0.09 * (1 + math.cos(math.pi * epoch / 1000)) / 2
            assert math.isclose(lrs(optimizer)[0], formula, rel_tol=1e-12)


# ---- the optimizer is left alone ---------------------------------------------------------------
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_step_of_the_optimizer_is_not_replaced(kind: str) -> None:
    optimizer = make_optimizer(kind)
    before = type(optimizer).step
    for name in ALL:
        ALL[name](OURS, optimizer)
    assert "step" not in vars(optimizer)
    assert type(optimizer).step is before
    assert len(optimizer._optimizer_step_post_hooks) == 1


@pytest.mark.parametrize("name", ALL)
def test_nothing_is_kept_alive_by_a_cycle(name: str) -> None:
    optimizer = make_optimizer()
    scheduler = ALL[name](OURS, optimizer)
    run(optimizer, scheduler, 3)
    dead = weakref.ref(optimizer), weakref.ref(scheduler)
    gc.disable()
    try:
        del scheduler
        assert dead[1]() is None
        del optimizer
        assert dead[0]() is None
    finally:
        gc.enable()


def test_a_composite_leaves_an_lr_that_is_not_its_members() -> None:
    for build in (
        lambda o, m: OURS.SequentialLR(o, m, [5]),
        lambda o, m: OURS.ChainedScheduler(m),
    ):
        optimizer = make_optimizer()
        members = [OURS.LinearLR(optimizer), OURS.ExponentialLR(optimizer, 0.9)]
        for group in optimizer.param_groups:
            group["lr"] = 0.077
        build(optimizer, members)
        assert lrs(optimizer) == [0.077] * 3


def test_a_sequence_leaves_an_lr_loaded_before_its_members() -> None:
    optimizer = make_optimizer()
    OURS.StepLR(optimizer, 9)  # so that there is an initial lr
    for group in optimizer.param_groups:
        group["lr"] = 0.077
    members = [OURS.ExponentialLR(optimizer, 0.9), OURS.ExponentialLR(optimizer, 0.5)]
    OURS.SequentialLR(optimizer, members, [5])
    assert lrs(optimizer) == [0.077] * 3


def test_a_sequence_beside_a_warm_up_does_not_undo_it() -> None:
    """torch starts such a chain from the full lr, and the warm-up multiplies it tenfold."""
    optimizer = make_optimizer()
    warmup = OURS.LinearLR(optimizer, 0.1)
    members = [OURS.ExponentialLR(optimizer, 0.9), OURS.ExponentialLR(optimizer, 0.5)]
    chain = OURS.ChainedScheduler([warmup, OURS.SequentialLR(optimizer, members, [10])])
    foreseen = [chain.lr_at(epoch) for epoch in range(9)]
    assert foreseen[0] == pytest.approx([0.01, 0.02, 0.03])
    for expected in foreseen:
        assert lrs(optimizer) == pytest.approx(expected, rel=1e-12)
        optimizer.step()
        chain.step()


def test_a_decay_to_nothing_can_take_over_inside_a_sequence() -> None:
    optimizer = make_optimizer(lrs=(0.1,))
    chain = OURS.ChainedScheduler([OURS.StepLR(optimizer, 2, 0.0)])
    members = [OURS.StepLR(optimizer, 9), chain]
    run(optimizer, scheduler := OURS.SequentialLR(optimizer, members, [1]), 1)
    assert [lr for lr, *_ in run(optimizer, scheduler, 4)] == [0.1, 0.1, 0.0, 0.0]


# ---- order of calls ----------------------------------------------------------------------------
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ALL)
def test_the_right_order_does_not_warn_and_the_wrong_one_does(name: str, kind: str) -> None:
    optimizer = make_optimizer(kind)
    scheduler = ALL[name](OURS, optimizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(optimizer, scheduler, 12)
    if name == "CosineAnnealingWarmRestarts":
        return
    scheduler = ALL[name](OURS, make_optimizer(kind))
    with pytest.warns(UserWarning, match=r"`lr_scheduler.step\(\)` before `optimizer.step\(\)`"):
        scheduler.step()


def test_a_step_skipped_by_a_grad_scaler_does_not_warn() -> None:
    for kind in ("torch.SGD", "torch.Adam"):
        optimizer = make_optimizer(kind)
        scheduler = OURS.StepLR(optimizer, 1)
        scaler = torch.amp.GradScaler("cpu")
        for group in optimizer.param_groups:
            for param in group["params"]:
                scaler.scale((param * math.inf).sum()).backward()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            scaler.step(optimizer)
            scaler.update()
            scheduler.step()
        assert lrs(optimizer)[0] == pytest.approx(0.01)


def test_hold_on_skip_waits_for_the_optimizer() -> None:
    for build in (
        lambda o: OURS.StepLR(o, 1, 0.5, hold_on_skip=True),
        lambda o: OURS.ChainedScheduler([OURS.StepLR(o, 1, 0.5)], hold_on_skip=True),
    ):
        optimizer = make_optimizer(lrs=(1.0,))
        scheduler = build(optimizer)
        scheduler.step()
        assert lrs(optimizer) == [1.0]
        train(optimizer)
        scheduler.step()
        scheduler.step()
        assert lrs(optimizer) == [0.5]


# ---- groups added later ------------------------------------------------------------------------
@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("name", ALL)
def test_a_group_added_later_is_scheduled(name: str, kind: str) -> None:
    optimizer = make_optimizer(kind)
    scheduler = ALL[name](OURS, optimizer)
    run(optimizer, scheduler, 4)
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.3})
    run(optimizer, scheduler, 60)
    assert lrs(optimizer)[3] != 0.3 or "PolynomialLR" in name or name == "ConstantLR"
    assert len(scheduler.get_last_lr()) == 4


@pytest.mark.parametrize("name", ALL)
def test_a_group_added_later_is_scheduled_after_a_resume_too(name: str) -> None:
    """The resumed run builds optimizer and scheduler, adds the group, and then loads both."""

    def build(before: int) -> tuple[Any, Any]:
        optimizer = make_optimizer()
        scheduler = ALL[name](OURS, optimizer)
        run(optimizer, scheduler, before)
        optimizer.add_param_group({"params": [torch.zeros(2, requires_grad=True)], "lr": 0.3})
        return optimizer, scheduler

    optimizer, scheduler = build(before=4)
    run(optimizer, scheduler, 6)
    again, resumed = build(before=0)
    again.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(scheduler.state_dict())
    assert run(again, resumed, 30) == run(optimizer, scheduler, 30)


def test_a_group_added_under_a_plateau_has_its_limits() -> None:
    optimizer = make_optimizer()
    scheduler = OURS.ReduceLROnPlateau(optimizer, patience=0, min_lr=[0.0, 0.0, 0.25])
    optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 0.5})
    for _ in range(4):
        scheduler.step(1.0)
    assert lrs(optimizer)[3] == 0.25


def test_a_chained_group_goes_on_from_its_own_lr_as_in_torch() -> None:
    found = []
    for module in (OURS, torch_schedulers):
        optimizer = make_optimizer()
        scheduler = module.ExponentialLR(optimizer, 0.5)
        optimizer.step()
        scheduler.step()
        optimizer.add_param_group({"params": [torch.zeros(1, requires_grad=True)], "lr": 8.0})
        scheduler.step()
        found.append(lrs(optimizer))
    assert found[0] == found[1]
    assert found[0][3] == 4.0


# ---- options -----------------------------------------------------------------------------------
def test_cosine_rises_past_its_end_as_in_torch_unless_held() -> None:
    rising, held = make_optimizer(lrs=(1.0,)), make_optimizer(lrs=(1.0,))
    run(rising, OURS.CosineAnnealingLR(rising, 10), 15)
    run(held, OURS.CosineAnnealingLR(held, 10, hold_last=True), 15)
    assert lrs(rising) == pytest.approx([0.5])
    assert lrs(held) == pytest.approx([0.0])


def test_one_cycle_says_where_its_end_came_from_and_can_hold() -> None:
    optimizer = make_optimizer(lrs=(1.0,))
    scheduler = OURS.OneCycleLR(optimizer, 1.0, epochs=2, steps_per_epoch=5)
    run(optimizer, scheduler, 10)
    before = in_force(optimizer)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"10 \(epochs=2 times steps_per_epoch=5\).*hold_last"):
            scheduler.step()
    assert (in_force(optimizer), scheduler.last_epoch) == (before, 10)
    optimizer = make_optimizer(lrs=(1.0,))
    scheduler = OURS.OneCycleLR(optimizer, 1.0, 10, hold_last=True)
    last = run(optimizer, scheduler, 30)[9:]
    assert last == [last[0]] * 21


def test_plateau_understands_negative_metrics_when_asked() -> None:
    metrics = [-1.0, -1.2, -1.5, -2.0, -3.0]
    for sign_aware, expected in ((False, 0.1), (True, 1.0)):
        optimizer = make_optimizer(lrs=(1.0,))
        scheduler = OURS.ReduceLROnPlateau(
            optimizer, threshold=0.5 if not sign_aware else 0.1, patience=3, sign_aware=sign_aware
        )
        for metric in metrics if sign_aware else [-1.0, -1.0001, -1.0002, -1.0003]:
            scheduler.step(metric)
        if sign_aware:
            assert lrs(optimizer) == [expected]
    # torch's reading: anything below -0.5 is better than -1, so a stall is never seen.
    optimizer = make_optimizer(lrs=(1.0,))
    scheduler = OURS.ReduceLROnPlateau(optimizer, threshold=0.5, patience=0)
    aware = make_optimizer(lrs=(1.0,))
    fixed = OURS.ReduceLROnPlateau(aware, threshold=0.5, patience=0, sign_aware=True)
    for _ in range(3):
        scheduler.step(-1.0)
        fixed.step(-1.0)
    assert lrs(optimizer) == [1.0]
    assert lrs(aware) == [pytest.approx(0.01)]


def test_verbose_prints_the_articles_line(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = make_optimizer(lrs=(0.1,))
    scheduler = OURS.ReduceLROnPlateau(optimizer, "min", patience=1, verbose=True)
    for _ in range(3):
        scheduler.step(1.0)
    assert capsys.readouterr().out == (
        "Epoch     3: reducing learning rate of group 0 to 1.0000e-02.\n"
    )
    optimizer = make_optimizer(lrs=(0.1,))
    lines: list[str] = []
    run(optimizer, OURS.StepLR(optimizer, 2, verbose=lines.append), 4)
    assert lines == [
        "Epoch     2: reducing learning rate of group 0 to 1.0000e-02.",
        "Epoch     4: reducing learning rate of group 0 to 1.0000e-03.",
    ]


# ---- arguments ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda o: OURS.StepLR(o, 0), ValueError, "step_size must be .* at least 1, got 0"),
        (lambda o: OURS.StepLR(o, 1.5), ValueError, "step_size must be a whole number"),
        (lambda o: OURS.StepLR(o, 3, "x"), TypeError, "gamma must be a number"),
        (lambda o: OURS.MultiStepLR(o, [-1]), ValueError, "milestones"),
        (lambda o: OURS.MultiStepLR(o, [1.5]), ValueError, "milestones"),
        (lambda o: OURS.MultiStepLR(o, ["a"]), TypeError, "milestones"),
        (lambda o: OURS.CosineAnnealingLR(o, 0), ValueError, "T_max must be above 0, got 0"),
        (lambda o: OURS.CosineAnnealingWarmRestarts(o, 0), ValueError, "T_0"),
        (lambda o: OURS.CosineAnnealingWarmRestarts(o, 5, 1.5), ValueError, "T_mult"),
        (lambda o: OURS.LambdaLR(o, [abs]), ValueError, "Expected 3 lr_lambdas, but got 1"),
        (lambda o: OURS.LambdaLR(o, 0.5), TypeError, "lr_lambda should be a function, but got"),
        (lambda o: OURS.MultiplicativeLR(o, [abs]), ValueError, "lr_lambda"),
        (lambda o: OURS.ConstantLR(o, 1.5), ValueError, "factor must be between 0 and 1"),
        (lambda o: OURS.LinearLR(o, 0), ValueError, "start_factor must be above 0"),
        (lambda o: OURS.LinearLR(o, 1, 2), ValueError, "end_factor"),
        (lambda o: OURS.LinearLR(o, total_iters=-1), ValueError, "total_iters"),
        (lambda o: OURS.CyclicLR(o, 0.1, 1, mode="up"), ValueError, "mode must be 'triangular'"),
        (lambda o: OURS.CyclicLR(o, [0.1], 1), ValueError, "base_lr"),
        (lambda o: OURS.CyclicLR(o, 0.1, 1, 0), ValueError, "step_size_up"),
        (lambda o: OURS.OneCycleLR(o, 1), ValueError, "total_steps is missing"),
        (lambda o: OURS.OneCycleLR(o, 1, 0), ValueError, "total_steps"),
        (lambda o: OURS.OneCycleLR(o, 1, 9, anneal_strategy="sin"), ValueError, "anneal_strategy"),
        (lambda o: OURS.OneCycleLR(o, 1, 9, pct_start=1.5), ValueError, "pct_start"),
        (lambda o: OURS.ReduceLROnPlateau(o, "low"), ValueError, "mode must be 'min' or 'max'"),
        (lambda o: OURS.ReduceLROnPlateau(o, factor=1), ValueError, "factor must be below 1"),
        (lambda o: OURS.ReduceLROnPlateau(o, min_lr=[0]), ValueError, "min_lr"),
        (
            lambda o: OURS.ReduceLROnPlateau(o, threshold=True),
            TypeError,
            "threshold must be a number",
        ),
        (lambda o: OURS.ReduceLROnPlateau(o).step("bad"), TypeError, "metrics must be a number"),
        (lambda o: OURS.ReduceLROnPlateau(o).step(None), TypeError, "metrics must be a number"),
        (lambda o: OURS.ReduceLROnPlateau(o).step(math.nan), ValueError, "metrics is nan"),
        (lambda o: OURS.SequentialLR(o, [], []), ValueError, "at least one"),
        (lambda o: OURS.SequentialLR(o, [OURS.StepLR(o, 1)], [3]), ValueError, "milestones"),
        (lambda o: OURS.ChainedScheduler([]), ValueError, "at least one"),
        (lambda o: OURS.ChainedScheduler([OURS.StepLR(o, 1), 3]), TypeError, "index 1"),
        (
            lambda o: OURS.ChainedScheduler([OURS.StepLR(o, 1), OURS.StepLR(make_optimizer(), 1)]),
            ValueError,
            "same optimizer",
        ),
        (lambda o: OURS.MultiStepLR(o, 5), TypeError, "milestones must be a list"),
        (lambda o: OURS.StepLR(o, 3, last_epoch=1.5), ValueError, "last_epoch"),
        (lambda o: OURS.StepLR(o, 3, initial_lr="x"), TypeError, "initial_lr"),
        (lambda o: OURS.CyclicLR(o, 0.1, math.nan), ValueError, "max_lr must be a finite"),
        (lambda o: OURS.CyclicLR(o, "x", 1), TypeError, "base_lr must be a number"),
        (lambda o: OURS.CyclicLR(o, 0.1, 1, scale_fn=2), TypeError, "scale_fn"),
        (lambda o: OURS.CyclicLR(o, 0.1, 1, max_momentum="x"), TypeError, "max_momentum"),
        (lambda o: OURS.OneCycleLR(o, None, 9), TypeError, "max_lr must be a number"),
        (lambda o: swalr(OURS)(o, None), TypeError, "swa_lr must be a number"),
        (lambda o: OURS.ReduceLROnPlateau(o, patience="x"), TypeError, "patience"),
        (lambda o: OURS.ReduceLROnPlateau(o, cooldown=None), TypeError, "cooldown"),
        (lambda o: OURS.ReduceLROnPlateau(o, min_lr=None), TypeError, "min_lr"),
        (lambda o: OURS.ReduceLROnPlateau(o, eps="x"), TypeError, "eps"),
        (lambda o: OURS.ReduceLROnPlateau(o).step(torch.ones(2)), TypeError, "metrics"),
        (lambda o: OURS.SequentialLR(o, None, []), TypeError, "schedulers must be a list"),
        (lambda o: OURS.ChainedScheduler(OURS.StepLR(o, 1)), TypeError, "schedulers"),
        (lambda o: OURS.StepLR("optimizer", 1), TypeError, "optimizer: str is not an Optimizer"),
    ],
)
def test_bad_arguments_are_refused_by_name(build: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build(make_optimizer())


def test_unsorted_milestones_count_as_sorted() -> None:
    first, second = make_optimizer(), make_optimizer()
    a, b = OURS.MultiStepLR(first, [30, 10]), OURS.MultiStepLR(second, [10, 30])
    assert run(first, a, 40) == run(second, b, 40)


# ---- users' own ---------------------------------------------------------------------------------
class Own(OURS.LRScheduler):  # type: ignore[misc]
    """Written as for torch: by recursion from the groups' lr."""

    def get_lr(self) -> list[float]:
        if self._is_initial:
            return [group["lr"] for group in self.optimizer.param_groups]
        return [group["lr"] * 0.9 for group in self.optimizer.param_groups]


class Warmed(OURS.CosineAnnealingLR):  # type: ignore[misc]
    """Built upon a class of ours."""

    def get_lr(self) -> list[float]:
        share = min(1.0, (self.last_epoch + 1) / 5)
        return [lr * share for lr in super().get_lr()]


def test_users_can_write_their_own() -> None:
    optimizer = make_optimizer()
    run(optimizer, Own(optimizer), 10)
    assert close(lrs(optimizer), [0.1 * 0.9**10, 0.2 * 0.9**10, 0.3 * 0.9**10])
    with pytest.raises(NotImplementedError, match="must write get_lr"):
        OURS.LRScheduler(make_optimizer())
    optimizer = make_optimizer(lrs=(1.0,))
    run(optimizer, Warmed(optimizer, 50), 3)
    assert 0 < lrs(optimizer)[0] < 1


def test_isinstance_holds_where_other_peoples_code_asks() -> None:
    optimizer = make_optimizer()
    for build in ALL.values():
        assert isinstance(build(OURS, optimizer), torch_schedulers.LRScheduler)
    assert isinstance(OURS.ReduceLROnPlateau(optimizer), torch_schedulers.ReduceLROnPlateau)


def test_warmup_then_plateau_in_one_object() -> None:
    optimizer = make_optimizer(lrs=(1.0,))
    scheduler = OURS.SequentialLR(
        optimizer,
        [
            OURS.LinearLR(optimizer, 0.5, total_iters=2),
            OURS.ReduceLROnPlateau(optimizer, patience=0, factor=0.5),
        ],
        [2],
    )
    seen = []
    for metric in (9.0, 8.0, 7.0, 7.0, 7.0):
        seen += lrs(optimizer)
        optimizer.step()
        scheduler.step(metric)
    assert seen == [0.5, 0.75, 1.0, 1.0, 0.5]
    with pytest.raises(TypeError, match="metrics must be a number"):
        scheduler.step()
    with pytest.raises(TypeError, match="depends on the metrics"):
        scheduler.lr_at(3)


@settings(max_examples=40, deadline=None)
@given(
    step_size=st.integers(1, 20),
    gamma=st.floats(0.01, 1.5),
    base=st.floats(1e-6, 10),
    epoch=st.integers(0, 120),
)
def test_lr_at_never_needs_the_run(step_size: int, gamma: float, base: float, epoch: int) -> None:
    optimizer = make_optimizer(lrs=(base,))
    scheduler = OURS.StepLR(optimizer, step_size, gamma)
    expected = scheduler.lr_at(epoch)
    run(optimizer, scheduler, epoch)
    assert lrs(optimizer) == expected
