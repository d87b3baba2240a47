"""What people's code does to schedulers: subclasses, old states and arguments, edits."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import warnings
from collections import Counter
from typing import Any

import pytest
from helpers import needs_torch
from lr_scheduler_cases import (
    CASES,
    COMPOSITES,
    OURS,
    TORCH,
    close,
    in_force,
    make_optimizer,
    run,
    swalr,
)

from steprule import swa_utils

pytestmark = pytest.mark.filterwarnings("ignore:The epoch parameter:UserWarning")
ALL = CASES | COMPOSITES
PLAIN = {name: build for name, build in CASES.items() if "-" not in name}


# ---- subclasses with a step() of their own -----------------------------------------------------
def by_hand(module: Any) -> Any:
    """Moves last_epoch, asks get_lr(), and writes nothing down."""

    class Halves(module.LRScheduler):  # type: ignore[misc, name-defined]
        def get_lr(self) -> Any:
            return [0.5**self.last_epoch for _ in self.optimizer.param_groups]

        def step(self, epoch: Any = None) -> None:
            self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
            for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                group["lr"] = lr

    return Halves


def test_a_subclass_that_never_writes_down_its_last_lr_is_saved_and_loaded() -> None:
    optimizer = make_optimizer()
    scheduler = by_hand(OURS)(optimizer)
    run(optimizer, scheduler, 3)
    assert scheduler.get_last_lr() == [0.125] * 3
    state = scheduler.state_dict()
    again = make_optimizer()
    resumed = by_hand(OURS)(again)
    resumed.load_state_dict(state)
    assert in_force(again) == in_force(optimizer)
    assert run(again, resumed, 3) == run(optimizer, scheduler, 3)


@pytest.mark.parametrize("module", [OURS, TORCH])
def test_such_a_subclass_may_be_in_a_composite(module: Any) -> None:
    """torch's composites ask their members for what was never written down."""
    optimizer = make_optimizer()
    members = [by_hand(module)(optimizer), OURS.ExponentialLR(optimizer, 0.5)]
    sequence = OURS.SequentialLR(optimizer, members, [2])
    foreseen = [[1.0] * 3, [0.5] * 3, [0.1, 0.2, 0.3], [0.05, 0.1, 0.15]]
    for expected in foreseen:
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)
        optimizer.step()
        sequence.step()


@pytest.mark.parametrize("name", CASES)
def test_a_step_of_ones_own_gets_the_next_lr_from_get_lr(name: str) -> None:
    """Copied from torch without its `_enable_get_lr_call`: torch warns, and computes."""
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        built = CASES[name](module, optimizer)

        class Own(type(built)):  # type: ignore[misc]
            def step(self, epoch: Any = None) -> None:
                self.last_epoch += 1
                self._step_count += 1
                if hasattr(self, "T_cur"):
                    self.T_cur = self.last_epoch
                for group, lr in zip(self.optimizer.param_groups, self.get_lr(), strict=True):
                    group["lr"] = lr

        built.__class__ = Own
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "To get the last learning rate")
            sides.append(run(optimizer, built, 30))
            if module is OURS:  # a second look changes nothing
                assert built.get_lr() == built.get_lr() == [g["lr"] for g in optimizer.param_groups]
    for mine, expected in zip(*sides, strict=True):
        assert close(mine, expected, 1e-11)


#: Names, and when ``last_epoch`` moves. torch's SWALR goes by the count alone, and stands still.
DRIVEN = [
    (name, moved)
    for name in CASES
    for moved in ("before", "after", "uncounted")
    if (name, moved) != ("SWALR", "uncounted")
]


@pytest.mark.parametrize(("name", "moved"), DRIVEN)
def test_driven_from_outside_it_moves_as_torchs_does(name: str, moved: str) -> None:
    """As ignite does, which counts no step: set the flag, ask get_lr(), and move last_epoch."""
    if moved != "before":
        needs_torch("2.9", "get_lr() before the first epoch moves on")
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        scheduler = CASES[name](module, optimizer)
        seen = []
        for number in range(25):
            if moved == "before" or number:
                scheduler.last_epoch += 1
                scheduler._step_count += moved != "uncounted"
            if isinstance(scheduler, TORCH.CosineAnnealingWarmRestarts):
                scheduler.T_cur = scheduler.last_epoch
            scheduler._get_lr_called_within_step = True
            values = scheduler.get_lr()
            scheduler._get_lr_called_within_step = False
            for group, lr in zip(optimizer.param_groups, values, strict=True):
                group["lr"] = lr
            seen.append(in_force(optimizer))
        sides.append(seen)
    for mine, expected in zip(*sides, strict=True):
        assert close(mine, expected, 1e-11)


# ---- groups whose lr is None -------------------------------------------------------------------
def without_lr() -> Any:
    """As Transformers' Adafactor, which finds the lr of each step itself."""
    optimizer = make_optimizer()
    for group in optimizer.param_groups:
        group["lr"] = None
    return optimizer


NONE_CASES: dict[str, Any] = PLAIN | {
    "ReduceLROnPlateau": lambda m, o: m.ReduceLROnPlateau(o, patience=0),
    "chained": lambda m, o: m.ChainedScheduler([m.StepLR(o, 5)]),
    "sequential": lambda m, o: m.SequentialLR(o, [m.StepLR(o, 9), m.OneCycleLR(o, 1.0, 9)], [2]),
}


@pytest.mark.parametrize("name", NONE_CASES)
def test_an_lr_of_none_works_where_it_does_in_torch(name: str) -> None:
    """Build, then step until torch, if it does, stumbles over the None; so do ours, and say it."""
    sides = []
    for module in (OURS, TORCH):
        optimizer = without_lr()
        seen: list[Any] = []
        try:
            scheduler = NONE_CASES[name](module, optimizer)
            optimizer._opt_called = True  # a step of torch's rules would need an lr
            for _ in range(8):
                seen.append([group["lr"] for group in optimizer.param_groups])
                scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
        except TypeError as error:
            seen.append(str(error))
        sides.append(seen)
    assert len(sides[0]) == len(sides[1])
    for mine, expected in zip(*sides, strict=True):
        if isinstance(expected, str):
            assert "lr of group 0 is None" in mine
        else:
            assert mine == (expected if None in expected else pytest.approx(expected))


def test_transformers_adafactor_schedule_works() -> None:
    for module in (OURS, TORCH):

        class AdafactorSchedule(module.LambdaLR):  # type: ignore[misc, name-defined]
            def __init__(self, optimizer: Any, initial_lr: float = 0.0) -> None:
                for group in optimizer.param_groups:
                    group["initial_lr"] = initial_lr
                super().__init__(optimizer, lambda _: initial_lr)
                for group in optimizer.param_groups:
                    del group["initial_lr"]

            def get_lr(self) -> Any:
                return [0.25] * 3 if self.last_epoch else self.base_lrs

        optimizer = without_lr()
        optimizer._opt_called = True  # a step of torch's rules would need an lr
        scheduler = AdafactorSchedule(optimizer)
        assert [group["lr"] for group in optimizer.param_groups] == [0.0] * 3
        scheduler.step()
        assert scheduler.get_last_lr() == [0.25] * 3
        scheduler.state_dict()


def test_a_failed_build_or_step_leaves_things_as_they_were() -> None:
    optimizer = without_lr()
    before = copy.deepcopy(optimizer.param_groups)
    optimizer._opt_called = True  # a step of torch's rules would need an lr
    with pytest.raises(TypeError, match="lr of group 0 is None, and ExponentialLR computes"):
        (scheduler := OURS.ExponentialLR(optimizer, 0.5)).step()
    assert scheduler.last_epoch == 0
    optimizer = without_lr()
    for build in (
        lambda: OURS.ConstantLR(optimizer),
        lambda: OURS.LambdaLR(optimizer, lambda epoch: 1.0),
        lambda: OURS.CosineAnnealingWarmRestarts(optimizer, 5),
    ):
        with pytest.raises(TypeError, match="lr of group 0 is None"):
            build()
        assert [g.keys() for g in optimizer.param_groups] == [g.keys() for g in before]
    plateau = OURS.ReduceLROnPlateau(optimizer, patience=0)
    plateau.step(1.0)
    state = plateau.state_dict()
    for _ in range(2):
        with pytest.raises(TypeError, match="lr of group 0 is None"):
            plateau.step(2.0)
        assert plateau.state_dict() == state


def test_a_state_with_an_lr_of_none_is_loaded() -> None:
    optimizer = without_lr()
    state = OURS.StepLR(optimizer, 5).state_dict()
    again = OURS.StepLR(without_lr(), 5)
    again.load_state_dict(state)
    assert again.get_last_lr() == [None] * 3
    lines: list[str] = []
    told = OURS.OneCycleLR(without_lr(), 1.0, 9, verbose=lines.append)
    assert len(lines) == len(told.optimizer.param_groups)


# ---- verbose -----------------------------------------------------------------------------------
VERBOSE = PLAIN | {
    "ReduceLROnPlateau": lambda m, o, **k: m.ReduceLROnPlateau(o, patience=0, **k),
    "SequentialLR": lambda m, o, **k: m.SequentialLR(
        o, [m.LinearLR(o), m.ExponentialLR(o, 0.5)], [2], **k
    ),
    "ChainedScheduler": lambda m, o, **k: m.ChainedScheduler([m.ExponentialLR(o, 0.5)], **k),
}


@pytest.mark.parametrize("verbose", ["deprecated", False, None, True])
@pytest.mark.parametrize("name", VERBOSE)
def test_verbose_deprecated_means_no(
    name: str, verbose: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    optimizer = make_optimizer()
    scheduler = VERBOSE[name](OURS, optimizer, verbose=verbose)
    for _ in range(11):
        optimizer.step()
        scheduler.step(1.0) if name == "ReduceLROnPlateau" else scheduler.step()
    assert bool(capsys.readouterr().out) == (verbose is True)


@pytest.mark.parametrize(
    ("verbose", "epoch", "line"),
    [
        (True, None, "Adjusting learning rate of group 1 to 1.0000e-01.\n"),
        (True, 3, "Epoch 00003: adjusting learning rate of group 1 to 1.0000e-01.\n"),
        (True, 2.5, "Epoch 2.50: adjusting learning rate of group 1 to 1.0000e-01.\n"),
        (False, 3, ""),
        ("deprecated", 3, ""),
    ],
)
def test_print_lr_prints_the_old_line(
    verbose: Any, epoch: Any, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    OURS.StepLR(make_optimizer(), 1).print_lr(verbose, 1, 0.1, epoch)
    assert capsys.readouterr().out == line


# ---- the article's order of arguments ----------------------------------------------------------
@pytest.mark.parametrize("verbose", [True, False])
@pytest.mark.parametrize("count", range(5, 11))
def test_a_plateau_takes_the_articles_order(count: int, verbose: bool) -> None:
    values = ("max", 0.5, 3, verbose, 0.25, "abs", 2, 0.01, 1e-3)[: count - 1]
    names = ["mode", "factor", "patience", "verbose", "threshold", "threshold_mode"]
    names += ["cooldown", "min_lr", "eps"]
    scheduler = OURS.ReduceLROnPlateau(make_optimizer(), *values)
    named = OURS.ReduceLROnPlateau(make_optimizer(), **dict(zip(names, values, strict=False)))
    assert scheduler.state_dict() == named.state_dict()
    assert scheduler.verbose is verbose


def test_names_and_the_articles_order_go_together(capsys: pytest.CaptureFixture[str]) -> None:
    optimizer = make_optimizer(lrs=(1.0,))
    scheduler = OURS.ReduceLROnPlateau(optimizer, "min", 0.1, 0, True, threshold=0.5, min_lr=0.2)
    assert (scheduler.threshold, scheduler.min_lrs) == (0.5, [0.2])
    scheduler.step(1.0)
    scheduler.step(1.0)
    assert "reducing learning rate of group 0 to 2.0000e-01" in capsys.readouterr().out
    for arguments, options, message in (
        (("min", 0.1, 9, True), {"verbose": True}, "got verbose twice"),
        (("min", 0.1, 9, True, 0.1), {"threshold": 0.1}, "got threshold twice"),
        (("min", 0.1, 9, True, 0.1, "rel", 0, 0, 1e-8, 3), {}, "at most 10 positional"),
    ):
        with pytest.raises(TypeError, match=message):
            OURS.ReduceLROnPlateau(optimizer, *arguments, **options)


def test_todays_order_is_as_it_was() -> None:
    values = ("max", 0.5, 3, 0.25, "abs", 2, 0.01, 1e-3)
    ours = OURS.ReduceLROnPlateau(make_optimizer(), *values)
    theirs = TORCH.ReduceLROnPlateau(make_optimizer(), *values)
    state = theirs.state_dict()
    state.pop("verbose", None)  # which torch 2.5 saves
    assert state.items() <= {key: ours.state_dict()[key] for key in state}.items()


# ---- warm restarts -----------------------------------------------------------------------------
@pytest.mark.skipif(
    "% self.T_i" not in inspect.getsource(TORCH.CosineAnnealingWarmRestarts.step),
    reason="torch subtracted T_i once, and went on past the end of a cycle",
)
@pytest.mark.parametrize("mult", [1, 2, 3])
@pytest.mark.parametrize(
    "edit", [{"T_i": 3}, {"T_i": 2, "T_cur": 9}, {"T_mult": 2}, {"T_cur": 25.5}, {"last_epoch": -1}]
)
def test_warm_restarts_edited_while_running_go_on_as_in_torch(edit: Any, mult: int) -> None:
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        scheduler = module.CosineAnnealingWarmRestarts(optimizer, 10, mult)
        run(optimizer, scheduler, 8)
        for name, value in edit.items():
            setattr(scheduler, name, value)
        sides.append(run(optimizer, scheduler, 60))
    assert all(close(mine, expected) for mine, expected in zip(*sides, strict=True))


@pytest.mark.parametrize("inside", ["alone", "chained", "sequential"])
@pytest.mark.parametrize("new", [{"T_0": 4}, {"T_mult": 3}, {"T_0": 7, "T_mult": 2}, {"T_0": 100}])
@pytest.mark.parametrize("stop", [0, 1, 7, 10, 23, 31])
def test_warm_restarts_go_on_in_the_cycles_that_are_kept(
    stop: int, new: dict[str, int], inside: str
) -> None:
    def build(**arguments: int) -> Any:
        optimizer = make_optimizer()
        scheduler = OURS.CosineAnnealingWarmRestarts(optimizer, **{"T_0": 10, **arguments})
        if inside == "chained":
            scheduler = OURS.ChainedScheduler([scheduler])
        elif inside == "sequential":
            scheduler = OURS.SequentialLR(
                optimizer, [scheduler, OURS.ConstantLR(optimizer)], [10**6]
            )
        return optimizer, scheduler

    optimizer, scheduler = build()
    run(optimizer, scheduler, stop)
    again, resumed = build(**new)
    resumed.load_state_dict(scheduler.state_dict(), keep=list(new))
    expected, uninterrupted = build(**new)
    run(expected, uninterrupted, stop)
    if inside == "alone":
        assert in_force(again) == in_force(expected)
        assert resumed.lr_at(stop) == [group["lr"] for group in again.param_groups]
    assert all(
        close(mine, theirs)
        for mine, theirs in zip(
            run(again, resumed, 40)[1:], run(expected, uninterrupted, 40)[1:], strict=True
        )
    )


def test_warm_restarts_keep_a_fraction_of_an_epoch() -> None:
    scheduler = OURS.CosineAnnealingWarmRestarts(make_optimizer(), 10)
    scheduler.optimizer.step()
    scheduler.step(13.5)
    again = OURS.CosineAnnealingWarmRestarts(make_optimizer(), 4)
    again.load_state_dict(scheduler.state_dict(), keep=["T_0"])
    assert (again.T_cur, again.T_i, again.last_epoch) == (1.5, 4, 13)


def test_a_step_that_fails_leaves_warm_restarts_where_they_were() -> None:
    class Own(OURS.CosineAnnealingWarmRestarts):  # type: ignore[misc]
        def get_lr(self) -> Any:
            if self.last_epoch == 3:
                raise RuntimeError("not today")
            return super().get_lr()

    optimizer = make_optimizer()
    scheduler = Own(optimizer, 10)
    run(optimizer, scheduler, 2)
    state = scheduler.state_dict()
    for arguments in ((), (3.5,)):
        with pytest.raises(RuntimeError, match="not today"):
            scheduler.step(*arguments)
        state["_step_count"] = scheduler._step_count
        assert scheduler.state_dict() == state


# ---- states of older torches -------------------------------------------------------------------
def cos_of_torch(start: float, end: float, pct: float) -> float:
    return end + (start - end) / 2.0 * (math.cos(math.pi * pct) + 1)


def linear_of_torch(start: float, end: float, pct: float) -> float:
    return (end - start) * pct + start


@pytest.mark.parametrize("built", ["cos", "linear"])
@pytest.mark.parametrize("saved", ["cos", "linear"])
@pytest.mark.parametrize("form", ["anneal_func", "lengths", "_anneal_func_type"])
def test_an_old_one_cycle_state_goes_on_its_own_way(form: str, saved: str, built: str) -> None:
    def build(module: Any, anneal: str, total: int) -> Any:
        optimizer = make_optimizer()
        return optimizer, module.OneCycleLR(optimizer, 1.0, total, anneal_strategy=anneal)

    theirs, reference = build(TORCH, saved, 40)
    run(theirs, reference, 9)
    state = reference.state_dict()
    if form != "_anneal_func_type":
        del state["_anneal_func_type"]
        state["anneal_func"] = cos_of_torch if saved == "cos" else linear_of_torch
    if form == "lengths":  # as torch up to 1.6
        del state["_schedule_phases"]
        state["step_size_up"] = 0.3 * 40 - 1
        state["step_size_down"] = 40 - state["step_size_up"] - 1
    before = copy.copy(state)
    ours, scheduler = build(OURS, built, 40 if form != "lengths" else 25)
    ours.load_state_dict(theirs.state_dict())
    scheduler.load_state_dict(state)
    assert state == before
    rows = zip(run(ours, scheduler, 30), run(theirs, reference, 30), strict=True)
    assert all(close(mine, expected, 1e-11) for mine, expected in rows)
    assert "anneal_func" not in scheduler.state_dict()


@pytest.mark.parametrize("built", ["cos", "linear"])
@pytest.mark.parametrize("saved", ["cos", "linear"])
def test_an_old_swalr_state_goes_on_its_own_way(saved: str, built: str) -> None:
    sides = []
    for module, strategy in ((TORCH, saved), (OURS, built)):
        optimizer = make_optimizer()
        sides.append((optimizer, swalr(module)(optimizer, 0.5, 20, strategy)))
    (theirs, reference), (ours, scheduler) = sides
    run(theirs, reference, 5)
    state = reference.state_dict()
    state.pop("_anneal_strategy", None)
    state["anneal_func"] = reference.anneal_func
    ours.load_state_dict(theirs.state_dict())
    scheduler.load_state_dict(state)
    rows = zip(run(ours, scheduler, 25), run(theirs, reference, 25), strict=True)
    assert all(close(mine, expected, 1e-11) for mine, expected in rows)
    assert "anneal_func" not in scheduler.state_dict()


@pytest.mark.parametrize(
    "build", [lambda o: OURS.OneCycleLR(o, 1.0, 20), lambda o: swa_utils.SWALR(o, 0.5)]
)
def test_a_strategy_nobody_knows_is_refused_and_changes_nothing(build: Any) -> None:
    scheduler = build(make_optimizer())
    before = scheduler.state_dict()
    state = {**before, "last_epoch": 7, "anneal_func": lambda *ends: ends[-1] ** 2}
    for name in ("_anneal_func_type", "_anneal_strategy"):
        state.pop(name, None)
    with pytest.raises(ValueError, match="anneal_func in the state must be torch's for 'cos'"):
        scheduler.load_state_dict(state)
    assert scheduler.state_dict() == before


def test_an_old_cyclic_state_leaves_the_scale_a_method() -> None:
    build = functools.partial(OURS.CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=4)
    scheduler = build(make_optimizer())
    old = {**scheduler.state_dict(), "scale_fn": abs, "_scale_fn_ref": abs}
    again = build(make_optimizer(), mode="triangular2")
    again.load_state_dict(old)
    assert again.mode == "triangular"
    assert again.lr_at(20) == scheduler.lr_at(20)
    assert "_scale_fn_ref" not in again.state_dict()


@pytest.mark.parametrize("new", ["triangular", "triangular2", "exp_range"])
@pytest.mark.parametrize("old", ["triangular", "triangular2", "exp_range"])
def test_a_mode_that_is_kept_scales_by_what_it_goes_by(old: str, new: str) -> None:
    build = functools.partial(
        OURS.CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=4, gamma=0.9, cycle_momentum=False
    )
    scheduler, again = build(make_optimizer(), mode=old), build(make_optimizer(), mode=new)
    again.load_state_dict(scheduler.state_dict(), keep=["mode"])
    assert again.lr_at(13) == build(make_optimizer(), mode=new).lr_at(13)


# ---- edits while running -----------------------------------------------------------------------
EDITS: list[tuple[str, dict[str, Any]]] = [
    ("StepLR", {"gamma": 0.9}),
    ("StepLR", {"step_size": 3}),
    ("MultiStepLR", {"gamma": 0.9}),
    ("MultiStepLR", {"milestones": Counter({14: 1, 20: 2})}),
    ("ConstantLR", {"factor": 0.8}),
    ("ConstantLR", {"total_iters": 14}),
    ("LinearLR", {"end_factor": 0.5}),
    ("LinearLR", {"total_iters": 20}),
    ("ExponentialLR", {"gamma": 0.5}),
    ("PolynomialLR", {"power": 1.0}),
    ("PolynomialLR", {"total_iters": 30}),
    ("CosineAnnealingLR", {"T_max": 30}),
    ("CosineAnnealingLR", {"eta_min": 0.01}),
    ("CosineAnnealingWarmRestarts", {"eta_min": 0.01}),
    ("CyclicLR", {"max_lrs": [2.0, 3.0, 4.0]}),
    ("CyclicLR", {"base_lrs": [0.5, 0.5, 0.5]}),
    ("CyclicLR", {"total_size": 30.0, "step_ratio": 0.25}),
    ("CyclicLR", {"cycle_momentum": False}),
    ("CyclicLR", {"max_momentums": [0.99, 0.99, 0.99]}),
    ("OneCycleLR", {"total_steps": 400}),
    ("OneCycleLR", {"cycle_momentum": False}),
    ("SWALR", {"anneal_epochs": 30}),
    ("LambdaLR", {"lr_lambdas": [math.cos, math.sin, math.exp]}),
    ("LambdaLR", {"base_lrs": [3.0, 4.0, 5.0]}),
    ("MultiplicativeLR", {"lr_lambdas": [math.cos, math.sin, math.cos]}),
    *((name, {"last_epoch": 5}) for name in PLAIN if name != "SWALR"),
]


@pytest.mark.parametrize(("name", "edit"), EDITS)
def test_an_attribute_changed_while_running_counts_as_in_torch(
    name: str, edit: dict[str, Any]
) -> None:
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        scheduler = CASES[name](module, optimizer)
        run(optimizer, scheduler, 12)
        for attribute, value in edit.items():
            setattr(scheduler, attribute, copy.copy(value))
        sides.append(run(optimizer, scheduler, 30))
    for mine, expected in zip(*sides, strict=True):
        assert close(mine, expected, 1e-11)


@pytest.mark.parametrize("key", ["max_lr", "min_lr", "initial_lr", "base_momentum", "swa_lr"])
def test_a_groups_key_changed_while_running_counts_as_in_torch(key: str) -> None:
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        scheduler = CASES["SWALR" if key == "swa_lr" else "OneCycleLR"](module, optimizer)
        run(optimizer, scheduler, 5)
        optimizer.param_groups[1][key] = 0.4
        sides.append(run(optimizer, scheduler, 150))
    for mine, expected in zip(*sides, strict=True):
        assert close(mine, expected, 1e-11)


@pytest.mark.parametrize(
    "edit",
    [
        {"factor": 0.7},
        {"patience": 0},
        {"cooldown": 2},
        {"threshold": 0.5},
        {"mode": "max"},
        {"threshold_mode": "abs"},
        {"min_lrs": [0.05, 0.06, 0.07]},
        {"eps": 0.5},
        {"best": 0.1},
        {"num_bad_epochs": 3},
        {"cooldown_counter": 4},
        {"last_epoch": 50},
    ],
)
def test_an_attribute_of_a_plateau_changed_while_running_counts_as_in_torch(edit: Any) -> None:
    sides = []
    for module in (OURS, TORCH):
        optimizer = make_optimizer()
        scheduler = module.ReduceLROnPlateau(optimizer, patience=2)
        seen = []
        for epoch in range(30):
            if epoch == 9:
                vars(scheduler).update(edit)
            scheduler.step(abs(7 - epoch % 15) + 1.0)
            seen.append([*in_force(optimizer), scheduler.best, scheduler.last_epoch])
        sides.append(seen)
    assert all(close(mine, expected) for mine, expected in zip(*sides, strict=True))


# ---- copies ------------------------------------------------------------------------------------
@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("name", ALL)
def test_a_copy_goes_on_by_itself_and_says_when_it_is_called_in_the_wrong_order(
    name: str, way: str
) -> None:
    optimizer = make_optimizer()
    scheduler = ALL[name](OURS, optimizer)
    before = in_force(optimizer)
    copied = (
        copy.deepcopy(scheduler) if way == "deepcopy" else pickle.loads(pickle.dumps(scheduler))
    )
    if name != "CosineAnnealingWarmRestarts":
        with pytest.warns(UserWarning, match="Detected call"):
            copy.deepcopy(copied).step()
    assert run(copied.optimizer, copied, 20)[0] == before
    assert in_force(optimizer) == before
    assert run(optimizer, scheduler, 20)[-1] == run(*rewound(name), 20)[-1]


def rewound(name: str) -> Any:
    optimizer = make_optimizer()
    return optimizer, ALL[name](OURS, optimizer)


@pytest.mark.parametrize("name", CASES)
def test_loading_makes_two_schedulers_alike_in_all_their_attributes(name: str) -> None:
    """PyTorch's own tests compare them, whatever they are called."""
    optimizer = make_optimizer()
    scheduler = CASES[name](OURS, optimizer)
    run(optimizer, scheduler, 11)
    again = CASES[name](OURS, make_optimizer())
    again.load_state_dict(scheduler.state_dict())
    left_out = {"optimizer"}
    assert vars(again).keys() - left_out == vars(scheduler).keys() - left_out
    for key in vars(scheduler).keys() - left_out:
        assert vars(again)[key] == vars(scheduler)[key], key


def test_a_subclass_may_compare_by_value() -> None:
    class Own(OURS.StepLR):  # type: ignore[misc]
        def __eq__(self, other: object) -> bool:
            return isinstance(other, Own) and self.state_dict() == other.state_dict()

        __hash__ = None  # type: ignore[assignment]

    first, second = Own(make_optimizer(), 3), Own(make_optimizer(), 3)
    assert first == second
    optimizer = make_optimizer()
    members = [Own(optimizer, 2), Own(optimizer, 3)]
    sequence = OURS.SequentialLR(optimizer, members, [4])
    assert run(optimizer, sequence, 6)[0] == in_force(make_optimizer())


@pytest.mark.parametrize("name", [*ALL, "ReduceLROnPlateau"])
def test_get_last_lr_is_known_before_any_step(name: str) -> None:
    optimizer = make_optimizer()
    build = NONE_CASES["ReduceLROnPlateau"] if name == "ReduceLROnPlateau" else ALL[name]
    scheduler = build(OURS, optimizer)
    assert (
        scheduler.get_last_lr() == scheduler.get_lr() == [g["lr"] for g in optimizer.param_groups]
    )
    assert scheduler.get_last_lr() == pytest.approx(build(TORCH, make_optimizer()).get_last_lr())
