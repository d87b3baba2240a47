"""`lr_scheduler.from_schedule`: any schedule as a scheduler object, and well-known ones by name."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lr_scheduler_cases import OURS, in_force, make_optimizer, run
from test_lr_scheduler_resume import ORDERS, saved

import steprule
from steprule import schedules
from steprule.lr_scheduler import from_schedule
from steprule.plotting import curves
from steprule.schedules import (
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    from_points,
    inverse_sqrt,
    linear,
    one_cycle,
    piecewise,
    polynomial,
    step_decay,
    wsd,
)

WARMED = cosine(0.3, 0.03, steps=20).warmup(5)


def one_group(kind: str = "torch.SGD") -> Any:
    return make_optimizer(kind, lrs=(0.3,))


def lrs_of(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    seen = []
    for _ in range(steps):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen


@pytest.mark.parametrize("kind", ["torch.SGD", "steprule.Adam"])
def test_it_sets_what_the_schedule_says(kind: str) -> None:
    optimizer = one_group(kind)
    scheduler = from_schedule(optimizer, WARMED)
    assert isinstance(scheduler, torch.optim.lr_scheduler.LRScheduler)
    assert isinstance(scheduler, OURS.LRScheduler)
    assert lrs_of(optimizer, scheduler, 30) == [[WARMED(step)] for step in range(30)]
    assert scheduler.get_last_lr() == [WARMED(30)]
    assert scheduler.lr_at(7) == [WARMED(7)]
    assert scheduler.schedule == WARMED
    assert curves(scheduler, 30)[0].values.tolist() == WARMED(range(30)).tolist()


def test_it_trains_as_the_schedule_itself_does() -> None:
    ends = []
    for lr in (0.3, WARMED):
        weight = torch.ones(3, requires_grad=True)
        optimizer = steprule.AdamW([weight], lr=lr)
        scheduler = from_schedule(optimizer, WARMED) if lr == 0.3 else None
        for _ in range(12):
            weight.grad = weight.detach().clone()
            optimizer.step()
            if scheduler is not None:
                scheduler.step()
        ends.append(weight)
    assert torch.equal(*ends)


def test_each_group_has_its_own_or_keeps_its_proportion() -> None:
    several = make_optimizer()
    given = [WARMED, constant(0.1), "linear(1, 0, steps=4)"]
    scheduler = from_schedule(several, given)
    expected = (WARMED, constant(0.1), linear(1, 0, steps=4))
    assert scheduler.schedules == expected
    assert lrs_of(several, scheduler, 9)[3] == [one(3) for one in expected]

    several = make_optimizer()
    factor = linear(1, 0, steps=4)
    scheduler = from_schedule(several, factor, relative=True)
    assert scheduler.schedules[1] == factor * 0.2
    assert lrs_of(several, scheduler, 9) == [
        [base * factor(k) for base in (0.1, 0.2, 0.3)] for k in range(9)
    ]


def test_one_schedule_does_not_make_groups_of_different_lrs_equal() -> None:
    optimizer = make_optimizer()
    before = copy.deepcopy(optimizer.param_groups)
    with pytest.raises(ValueError, match=r"schedule: .*0\.1, 0\.2, 0\.3.*relative=True"):
        from_schedule(optimizer, WARMED)
    assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in before]
    assert "initial_lr" not in optimizer.param_groups[0]
    alike = make_optimizer(lrs=(0.3, 0.3, 0.3))
    assert from_schedule(alike, WARMED).lr_at(9) == [WARMED(9)] * 3


@pytest.mark.parametrize("order", ORDERS)
def test_resumes_exactly_in_any_order(order: str) -> None:
    def build(optimizer: Any) -> Any:
        return from_schedule(optimizer, cosine(1, 0, steps=20).warmup(5), relative=True)

    optimizer = make_optimizer()
    whole = run(optimizer, build(optimizer), 30)
    for stop in (1, 5, 21):
        optimizer = make_optimizer()
        scheduler = build(optimizer)
        run(optimizer, scheduler, stop)
        states = saved({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()})
        again: Any = None
        resumed: Any = None
        for action in order.split():
            if action == "O":
                again = make_optimizer()
            elif action == "S":
                resumed = build(again)
            elif action == "LO":
                again.load_state_dict(states["optimizer"])
            else:
                resumed.load_state_dict(states["scheduler"])
        assert run(again, resumed, 30 - stop) == whole[stop:]


def test_a_state_brings_its_schedules_or_leaves_those_given() -> None:
    first = from_schedule(one_group(), WARMED)
    run(first.optimizer, first, 4)
    state = first.state_dict()
    longer = cosine(0.3, 0.03, steps=80).warmup(5)
    loaded, kept = from_schedule(one_group(), longer), from_schedule(one_group(), longer)
    loaded.load_state_dict(state)
    kept.load_state_dict(state, keep=["lr_schedules"])
    assert loaded.schedule == WARMED
    assert (kept.schedule, kept.last_epoch) == (longer, 4)
    kept.optimizer.step()
    kept.step()
    assert kept.get_last_lr() == [longer(5)]
    with pytest.raises(ValueError, match="not a schedule"):
        loaded.load_state_dict({**state, "lr_schedules": [3]})
    assert loaded.schedule == WARMED


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_a_copy_runs_on_as_the_original(copied: Any) -> None:
    optimizer = one_group()
    scheduler = from_schedule(optimizer, WARMED)
    run(optimizer, scheduler, 3)
    twin = copied(scheduler)
    assert run(twin.optimizer, twin, 9) == run(optimizer, scheduler, 9)


def test_it_stands_within_others_takes_later_groups_and_goes_on_from_an_epoch() -> None:
    optimizer = one_group()
    halves = [from_schedule(optimizer, constant(0.5)), from_schedule(optimizer, WARMED)]
    scheduler = OURS.SequentialLR(optimizer, halves, [3])
    assert [row[0] for row in lrs_of(optimizer, scheduler, 6)] == [
        *[0.5] * 3,
        *[WARMED(k) for k in range(3)],
    ]

    optimizer = one_group()
    scheduler = from_schedule(optimizer, WARMED)
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "lr": 9.0})
    optimizer.step()
    with pytest.warns(UserWarning, match=r"group 1 was added with lr 9, .*relative=True"):
        scheduler.step()
    assert scheduler.get_last_lr() == [WARMED(1)] * 2

    again = one_group()
    scheduler = from_schedule(again, WARMED, last_epoch=6, initial_lr=0.3)
    assert in_force(again)[0] == WARMED(7)


@pytest.mark.parametrize(
    ("lr", "relative"), [(0.3, False), (WARMED(1), False), (9.0, True)], ids=str
)
def test_a_later_group_that_loses_nothing_is_taken_in_silence(lr: float, relative: bool) -> None:
    optimizer = one_group()
    scheduler = from_schedule(optimizer, WARMED, relative=relative)
    run(optimizer, scheduler, 1)
    optimizer.add_param_group({"params": [torch.ones(1, requires_grad=True)], "lr": lr})
    optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr()[1] == WARMED(2) * (lr if relative else 1)


def test_a_schedule_of_the_optimizers_own_is_not_driven_twice() -> None:
    optimizer = steprule.SGD([torch.ones(1, requires_grad=True)], lr=WARMED)
    with pytest.raises(ValueError, match="follows cosine"):
        from_schedule(optimizer, WARMED)


# ---- by the names that people search for (docs/schedules.md) -------------------------------------
# Each pair: what the library computes, written from its definition, and the one line here. W steps
# of warm-up in T steps of training, from lr.
LR, W, T = 0.3, 10, 50


def warmed(step: int, after: Callable[[int], float]) -> float:
    """Transformers' warm-up: step / W, then what comes after."""
    return LR * (step / W if step < W else after(step))


def progress(step: int) -> float:
    return (step - W) / (T - W)


def half_cosine(share: float) -> float:
    return (1 + math.cos(math.pi * share)) / 2


def timm_warmed(step: int, after: Callable[[int], float]) -> float:
    """timm's warm-up, prefixed: linear from warmup_lr_init to lr in warmup_t."""
    return 0.01 + step * (LR - 0.01) / W if step < W else after(step - W)


def rising(start: float = 0.01) -> Schedule:
    return linear(start, LR, steps=W)


def theirs_onecycle(step: int) -> float:
    """fastai's combined_cos: from lr / div up to lr, then down to lr / div_final; by share."""
    share, turn, div, final = min(step / T, 1.0), 0.2, 25.0, 1e5
    if share < turn:
        return LR + (LR / div - LR) * half_cosine(share / turn)
    return LR / final + (LR - LR / final) * half_cosine((share - turn) / (1 - turn))


def restarts(step: int) -> float:
    done = progress(step)
    return 0.0 if done >= 1 else half_cosine(4 * done % 1.0)


def cycles_of_timm(step: int) -> float:
    """CosineLRScheduler(t_initial=10, cycle_mul=2, cycle_decay=.5, cycle_limit=2, lr_min=.01)."""
    cycle, begin, length = 0, 0, 10
    while step >= begin + length:
        cycle, begin, length = cycle + 1, begin + length, 2 * length
    high = LR * 0.5**cycle
    return 0.01 + (high - 0.01) * half_cosine((step - begin) / length) if cycle < 2 else 0.01


def tanh_of_timm(step: int) -> float:
    """TanhLRScheduler(t_initial=T, lb=-7, ub=3, lr_min=0)."""
    share = step / T
    return 0.5 * LR * (1 - math.tanh(-7 * (1 - share) + 3 * share)) if step < T else 0.0


BY_NAME: dict[str, tuple[Callable[[int], float], Schedule]] = {
    "get_constant_schedule": (lambda k: LR, constant(LR)),
    "get_constant_schedule_with_warmup": (
        lambda k: warmed(k, lambda _: 1.0),
        constant(LR).warmup(W),
    ),
    "get_linear_schedule_with_warmup": (
        lambda k: warmed(k, lambda k: max(0.0, (T - k) / (T - W))),
        linear(LR, 0, steps=T - W).warmup(W),
    ),
    "get_cosine_schedule_with_warmup": (
        lambda k: warmed(k, lambda k: half_cosine(min(progress(k), 1))),
        cosine(LR, 0, steps=T - W).warmup(W),
    ),
    "get_cosine_with_hard_restarts_schedule_with_warmup": (
        lambda k: warmed(k, restarts),
        cosine_restarts(LR, 0, steps=(T - W) // 4).then(constant(0), at=T - W).warmup(W),
    ),
    "get_polynomial_decay_schedule_with_warmup": (
        lambda k: warmed(k, lambda k: ((LR - 1e-7) * (1 - min(progress(k), 1)) ** 2 + 1e-7) / LR),
        polynomial(LR, 1e-7, steps=T - W, power=2).warmup(W),
    ),
    "get_inverse_sqrt_schedule": (
        lambda k: warmed(k, lambda k: 1 / math.sqrt(k / W)),
        inverse_sqrt(LR, warmup=W),
    ),
    "get_cosine_with_min_lr_schedule_with_warmup": (
        lambda k: warmed(k, lambda k: half_cosine(min(progress(k), 1)) * (1 - 0.1) + 0.1),
        cosine(LR, 0.1 * LR, steps=T - W).warmup(W),
    ),
    "get_wsd_schedule": (
        lambda k: warmed(k, lambda k: half_cosine(min(max(k - 30, 0) / 20, 1))),
        constant(LR).warmup(W).then(cosine(LR, 0, steps=20), at=30),
    ),
    "get_wsd_schedule(decay_type='linear')": (
        lambda k: warmed(k, lambda k: 1 - min(max(k - 30, 0) / 20, 1)),
        wsd(LR, warmup=W, stable=20, decay=20),
    ),
    "timm CosineLRScheduler": (
        lambda k: timm_warmed(k, lambda k: 0.01 + (LR - 0.01) * half_cosine(min(k / T, 1))),
        rising().then(cosine(LR, 0.01, steps=T), at=W),
    ),
    "timm CosineLRScheduler, cycles": (
        cycles_of_timm,
        # cycle_decay is of the peak, as here; what comes after cycle_limit is lr_min.
        cosine_restarts(LR, 0.01, steps=10, cycle_mult=2, peak_mult=0.5).then(
            constant(0.01), at=30
        ),
    ),
    "timm CosineLRScheduler, warmup_prefix=False": (
        lambda k: 0.01 + k * (LR - 0.01) / W if k < W else LR * half_cosine(min(k / T, 1)),
        rising().then(
            from_points([(k, LR * half_cosine((k + W) / T)) for k in range(T - W + 1)]), at=W
        ),
    ),
    "timm StepLRScheduler": (
        lambda k: timm_warmed(k, lambda k: LR * 0.1 ** (k // 30)),
        rising().then(step_decay(LR, 0.1, every=30), at=W),
    ),
    "timm MultiStepLRScheduler": (
        # Its milestones hold one step early (its docstring says so, and keeps it).
        lambda k: timm_warmed(k, lambda k: LR * 0.1 ** ((k + 1 >= 20) + (k + 1 >= 35))),
        rising().then(piecewise({0: LR, 19: 0.1 * LR, 34: 0.01 * LR}), at=W),
    ),
    "timm PolyLRScheduler": (
        lambda k: timm_warmed(k, lambda k: LR * (1 - min(k / T, 1)) ** 0.5),
        rising().then(polynomial(LR, 0, steps=T, power=0.5), at=W),
    ),
    "timm TanhLRScheduler": (
        tanh_of_timm,
        from_points(
            [(k, LR * (1 - math.tanh(-7 + 10 * k / T)) / 2) for k in range(T)] + [(T, 0.0)]
        ),
    ),
    "Lightning Bolts LinearWarmupCosineAnnealingLR": (
        # warmup_start_lr at 0, the full lr at W - 1 and once more at W, where the cosine begins.
        lambda k: (
            0.01 + k * (LR - 0.01) / (W - 1)
            if k < W
            else 0.02 + (LR - 0.02) * half_cosine(min((k - W) / (T - W), 1))
        ),
        linear(0.01, LR, steps=W - 1).then(cosine(LR, 0.02, steps=T - W), at=W),
    ),
    "Keras CosineDecay": (
        lambda k: LR * ((1 - 0.1) * half_cosine(min(k / T, 1)) + 0.1),
        cosine(LR, 0.1 * LR, steps=T),
    ),
    "Keras CosineDecay, warmup_target": (
        lambda k: (
            0.01 + k * (LR - 0.01) / W
            if k < W
            else LR * ((1 - 0.1) * half_cosine(min((k - W) / T, 1)) + 0.1)
        ),
        rising().then(cosine(LR, 0.1 * LR, steps=T), at=W),
    ),
    "optax.warmup_cosine_decay_schedule": (
        lambda k: (
            0.01 + k * (LR - 0.01) / W
            if k < W
            else 0.02 + (LR - 0.02) * half_cosine(min((k - W) / (T - W), 1))
        ),
        rising().then(cosine(LR, 0.02, steps=T - W), at=W),
    ),
    "torch OneCycleLR": (
        lambda k: torchs_one_cycle()[k] if k < T else torchs_one_cycle()[-1],
        one_cycle(LR, steps=T),
    ),
    "FastAI fit_one_cycle(pct_start=0.2)": (
        theirs_onecycle,
        cosine(LR / 25, LR, steps=10).then(cosine(LR, LR / 1e5, steps=T - 10), at=10),
    ),
}


def torchs_one_cycle() -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=LR)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, T)
    seen = []
    for step in range(T):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if step < T - 1:
            scheduler.step()
    return seen


@pytest.mark.parametrize("name", BY_NAME)
def test_schedules_of_other_libraries_by_one_line(name: str) -> None:
    theirs, ours = BY_NAME[name]
    for step in range(T + 15):
        assert ours(step) == pytest.approx(theirs(step), rel=1e-12, abs=1e-15), step


DOCS = Path(__file__).parents[1] / "docs" / "schedules.md"
#: What the names in the table on the page stand for.
NAMES: dict[str, Any] = {
    **vars(schedules),
    "lr_scheduler": OURS,
    **{name: getattr(OURS, name) for name in OURS.__all__},
    "tanh": math.tanh,
    "lr": LR,
    "W": W,
    "T": T,
    "D": 20,
    "R": 12,
    "init": 0.01,
    "end": 0.02,
    "alpha": 0.1,
    "min_lr": 0.03,
    "lr_min": 0.01,
    "lr_end": 0.02,
    "eta_min": 0.02,
    "warmup_start_lr": 0.01,
    "warmup_lr_init": 0.01,
    "num_cycles": 4,
    "power": 2,
    "rate": 0.1,
    "decay_rate": 0.1,
    "decay_t": 30,
    "t_initial": 10,
}


def rows_of_the_page() -> dict[str, str]:
    lines = DOCS.read_text().split("## By the names")[1].split("\n## ")[0].splitlines()
    cells = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    return {row[0]: row[1].split("`")[1] for row in cells[2:] if len(row) == 2 and "`" in row[1]}


@pytest.mark.parametrize(("name", "line"), rows_of_the_page().items())
def test_each_line_of_the_page_runs_as_it_stands(name: str, line: str) -> None:
    optimizer = one_group()
    made = eval(line, {**NAMES, "optimizer": optimizer, "o": optimizer})  # our page
    if isinstance(made, Schedule):
        assert all(math.isfinite(made(step)) for step in (0, W, T, T + 15)), name
    else:
        assert isinstance(made, torch.optim.lr_scheduler.LRScheduler | OURS.ReduceLROnPlateau), name


def test_the_page_has_its_lines() -> None:
    assert len(rows_of_the_page()) >= 23


def test_timms_plateau_behind_a_warm_up() -> None:
    metrics = [0.1, 0.2, 0.3] * W
    theirs, ours = one_group(), one_group()
    theirs.param_groups[0]["lr"] = 0.01
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(theirs, mode="max", patience=1)
    warm = OURS.LinearLR(ours, start_factor=0.01 / LR, total_iters=W)
    decay = OURS.ReduceLROnPlateau(ours, mode="max", patience=1)
    scheduler = OURS.SequentialLR(ours, [warm, decay], [W + 1])
    for epoch, metric in enumerate(metrics, start=1):
        if epoch <= W:  # its step(): the metric is looked at behind the warm-up alone
            theirs.param_groups[0]["lr"] = 0.01 + epoch * (LR - 0.01) / W
        else:
            plateau.step(metric)
        ours.step()
        scheduler.step(metric)
        assert in_force(ours)[0] == pytest.approx(in_force(theirs)[0], rel=1e-12), epoch
