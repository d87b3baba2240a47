"""Learning-rate schedulers: each argument of each class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

import steprule
from error_cases import values
from error_cases.case import Case, nothing
from error_cases.values import Bad
from steprule import lr_scheduler, swa_utils
from steprule.lr_scheduler import scheduler_first
from steprule.schedules import constant

ABOUT = "Learning-rate schedulers"
CALLABLE = "Pass a function of the epoch, or a list of one for each group."
RATE = "Pass a number, or a list of one for each group."


def half(epoch: int) -> float:
    return 0.5


def optimizer() -> steprule.Optimizer:
    groups = [{"params": [torch.ones(2, requires_grad=True)], "lr": lr} for lr in (0.1, 0.2)]
    return steprule.SGD(groups, lr=0.1, momentum=0.9)


#: What each class must be given.
NEEDED: dict[str, dict[str, Any]] = {
    "LambdaLR": {"lr_lambda": half},
    "MultiplicativeLR": {"lr_lambda": half},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [3]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 9},
    "CosineAnnealingWarmRestarts": {"T_0": 4},
    "CyclicLR": {"base_lr": 0.1, "max_lr": 1.0},
    "OneCycleLR": {"max_lr": 1.0, "total_steps": 9},
    "SWALR": {"swa_lr": 0.1},
    "from_schedule": {"schedule": constant(0.5), "relative": True},
}
#: Those made of others have cases of their own (scheduler_methods.py).
COMPOSITES = ("SequentialLR", "ChainedScheduler")
ALONE = [name for name in lr_scheduler.__all__ if name not in (*COMPOSITES, "scheduler_first")]

NUMBERS = values.PLAIN_NUMBERS
COUNTS = values.COUNTS
FLAGS = values.FLAGS
WORDS = values.WORDS
RATES = (
    *(bad for bad in NUMBERS if bad.text != "[]"),
    Bad("[0.1]", [0.1], ValueError, RATE),
)
FUNCTIONS = (
    Bad("3", 3, TypeError, CALLABLE),
    Bad("[]", [], ValueError, CALLABLE, "0"),
)
SCHEDULES = (
    Bad("0.1", 0.1, TypeError, "Pass a schedule: constant(0.1)."),
    Bad(
        "'cosine('",
        "cosine(",
        ValueError,
        "Write a schedule as `steprule plot` takes it.",
        "cosine(",
    ),
    Bad(
        "[constant(0.5)]", [constant(0.5)], ValueError, "Pass one, or as many as there are groups."
    ),
)
MILESTONES = (
    Bad("3", 3, TypeError, "Pass a list of epochs, also for one."),
    Bad("'30'", "30", TypeError, "Pass a list of epochs."),
    Bad("[2.5]", [2.5], ValueError, "Pass whole numbers.", "2.5"),
    Bad("[-1]", [-1], ValueError, "Pass numbers of 0 or more.", "-1"),
)
VERBOSE = tuple(bad for bad in FLAGS if bad.text != "nan")
#: What arguments take, by their names; the same in all classes that have them.
KINDS: dict[str, tuple[Bad, ...]] = {
    **dict.fromkeys(
        (
            "gamma",
            "factor",
            "start_factor",
            "end_factor",
            "power",
            "T_max",
            "eta_min",
            "step_size_up",
            "step_size_down",
            "pct_start",
            "div_factor",
            "final_div_factor",
            "threshold",
            "eps",
            "patience",
            "cooldown",
        ),
        NUMBERS,
    ),
    **dict.fromkeys(
        ("step_size", "T_0", "T_mult", "total_steps", "last_epoch", "anneal_epochs"), COUNTS
    ),
    **dict.fromkeys(("epochs", "steps_per_epoch"), COUNTS),
    "total_iters": NUMBERS,
    **dict.fromkeys(
        ("base_lr", "max_lr", "min_lr", "swa_lr", "base_momentum", "max_momentum", "initial_lr"),
        RATES,
    ),
    **dict.fromkeys(
        ("hold_on_skip", "hold_last", "cycle_momentum", "three_phase", "sign_aware", "nan_is_bad"),
        FLAGS,
    ),
    "relative": FLAGS,
    "schedule": SCHEDULES,
    **dict.fromkeys(
        ("mode", "scale_mode", "anneal_strategy", "threshold_mode"),
        WORDS,
    ),
    **dict.fromkeys(("lr_lambda",), FUNCTIONS),
    "scale_fn": FUNCTIONS[:1],
    "milestones": MILESTONES,
    "verbose": VERBOSE,
}
#: Which share of what else a class takes by `**options`: the base class's.
OPTIONS = ("initial_lr", "hold_on_skip")


def arguments_of(cls: Any) -> list[str]:
    """The arguments of a class beside the optimizer."""
    found = inspect.signature(cls).parameters.values()
    named = [p.name for p in found if p.name != "optimizer" and p.kind < p.VAR_KEYWORD]
    takes_options = any(p.kind is p.VAR_KEYWORD for p in found)
    return [*named, *(name for name in OPTIONS if takes_options and name not in named)]


def build(cls: Any, given: dict[str, Any]) -> Callable[[Any], object]:
    return lambda made: cls(made, **given)


def derived(cls: Any, where: str, is_shown: bool) -> Iterator[Case]:
    # SWALR notes its swa_lr in the groups before its other arguments are looked at.
    subject = optimizer
    needed = NEEDED.get(cls.__name__, {})
    for argument in arguments_of(cls):
        for bad in KINDS.get(argument, ()):
            call = build(cls, {**needed, argument: bad.value})
            yield Case(
                ABOUT,
                where,
                argument,
                bad.text,
                call if cls is not swa_utils.SWALR else lambda _, call=call: call(optimizer()),
                bad.error,
                bad.remedy,
                (argument, bad.expected),
                subject if cls is not swa_utils.SWALR else nothing,
                is_shown,
            )
    yield Case(
        ABOUT,
        where,
        "optimizer",
        "3",
        lambda _: cls(3, **needed),
        TypeError,
        "Pass the optimizer first.",
        ("optimizer", "int"),
        is_shown=is_shown,
    )
    if any(p.kind is p.VAR_KEYWORD for p in inspect.signature(cls).parameters.values()):
        yield Case(
            ABOUT,
            where,
            "options",
            "T_min=3",
            lambda _: cls(optimizer(), **needed, T_min=3),
            TypeError,
            "Leave it out: the class has no such argument.",
            ("T_min",),
            is_shown=is_shown,
        )


def as_shown(argument: str) -> str:
    """The argument that stands for this one on the page: the first that takes the same."""
    kind = KINDS.get(argument)
    return argument if kind in (None, WORDS) else next(k for k in KINDS if KINDS[k] is kind)


def cases() -> Iterator[Case]:
    shown: set[tuple[str, str]] = set()
    for name in (*ALONE, "SWALR"):
        cls = swa_utils.SWALR if name == "SWALR" else getattr(lr_scheduler, name)
        for case in derived(cls, name, is_shown=True):
            message = as_shown(case.argument), case.given
            yield replace(case, is_shown=message not in shown)
            shown.add(message)
    for name in scheduler_first.__all__:
        for case in derived(getattr(scheduler_first, name), f"scheduler_first.{name}", False):
            yield case
