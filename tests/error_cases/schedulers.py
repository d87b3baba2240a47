"""Learning-rate schedulers: each argument of each class, and what their methods are given."""

from __future__ import annotations

import inspect
import math
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
}
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


def step(*arguments: Any) -> Callable[[Any], object]:
    return lambda scheduler: scheduler.step(*arguments)


def step_lr() -> Any:
    return lr_scheduler.StepLR(optimizer(), 3)


def scheduled() -> Any:
    """An optimizer on which a scheduler was built before, so that another changes nothing."""
    return step_lr().optimizer


def plateau() -> Any:
    return lr_scheduler.ReduceLROnPlateau(optimizer())


def two(made: Any) -> list[Any]:
    return [lr_scheduler.StepLR(made, 3), lr_scheduler.StepLR(made, 5)]


def sequential(milestones: Any) -> Callable[[Any], object]:
    def call(_: Any) -> object:
        made = optimizer()
        return lr_scheduler.SequentialLR(made, two(made), milestones)

    return call


def composites() -> Iterator[Case]:
    for name, more in (("SequentialLR", ([3],)), ("ChainedScheduler", ())):
        cls = getattr(lr_scheduler, name)
        before = (lambda made: (made,)) if name == "SequentialLR" else (lambda made: ())
        for text, value, error, remedy in (
            ("3", 3, TypeError, "Pass a list of schedulers."),
            ("[]", [], ValueError, "Pass at least one scheduler."),
            ("[3]", [3], TypeError, "Pass schedulers only."),
        ):
            milestones = ([],) if more else ()
            yield Case(
                ABOUT,
                name,
                "schedulers",
                text,
                lambda made, cls=cls, before=before, value=value, milestones=milestones: cls(
                    *before(made), value, *milestones
                ),
                error,
                remedy,
                ("schedulers",),
                optimizer,
            )
        yield Case(
            ABOUT,
            name,
            "schedulers",
            "of another optimizer",
            lambda made, cls=cls, before=before, more=more: cls(
                *before(made), [lr_scheduler.StepLR(made, 3), step_lr()], *more
            ),
            ValueError,
            "Build all of them on the same optimizer.",
            ("schedulers", "index 1"),
            scheduled,
        )
        for argument in ("verbose", "hold_on_skip"):
            for bad in KINDS[argument]:
                yield Case(
                    ABOUT,
                    name,
                    argument,
                    bad.text,
                    lambda _, cls=cls, more=more, name=name, given={argument: bad.value}: (
                        lambda made: cls(
                            *((made,) if name == "SequentialLR" else ()), two(made), *more, **given
                        )
                    )(optimizer()),
                    bad.error,
                    bad.remedy,
                    is_shown=False,
                )
    yield Case(
        ABOUT,
        "ChainedScheduler",
        "optimizer",
        "3",
        lambda made: lr_scheduler.ChainedScheduler(two(made), 3),
        TypeError,
        "Leave it out, or pass the optimizer of the schedulers.",
        ("optimizer", "int"),
        scheduled,
    )
    yield Case(
        ABOUT,
        "SequentialLR",
        "optimizer",
        "3",
        lambda _: lr_scheduler.SequentialLR(3, [], []),
        TypeError,
        "Pass the optimizer first.",
        ("optimizer", "int"),
    )
    for text, value, error, says in (
        ("3", 3, TypeError, "3"),
        ("[]", [], ValueError, "[]"),
        ("[2.5]", [2.5], ValueError, "2.5"),
    ):
        yield Case(
            ABOUT,
            "SequentialLR",
            "milestones",
            text,
            sequential(value),
            error,
            "Pass whole epochs, one fewer than there are schedulers.",
            ("milestones", says),
        )
    for bad in COUNTS:
        yield Case(
            ABOUT,
            "SequentialLR",
            "last_epoch",
            bad.text,
            lambda _, value=bad.value: (
                lambda made: lr_scheduler.SequentialLR(made, two(made), [3], last_epoch=value)
            )(optimizer()),
            bad.error,
            bad.remedy,
            is_shown=False,
        )


def as_shown(argument: str) -> str:
    """The argument that stands for this one on the page: the first that takes the same."""
    kind = KINDS.get(argument)
    return argument if kind in (None, WORDS) else next(k for k in KINDS if KINDS[k] is kind)


SCHEDULER = "Pass what this scheduler's state_dict() returned."
METHODS: tuple[
    tuple[
        str,
        str,
        str,
        Callable[[], Any],
        Callable[[Any], object],
        type[Exception],
        tuple[str, ...],
        str,
    ],
    ...,
] = (
    (
        "StepLR.step",
        "epoch",
        "'3'",
        step_lr,
        step("3"),
        TypeError,
        ("epoch", "'3'"),
        "Leave it out: each call goes on by one.",
    ),
    (
        "StepLR.step",
        "epoch",
        "nan",
        step_lr,
        step(math.nan),
        ValueError,
        ("epoch", "nan"),
        "Leave it out: each call goes on by one.",
    ),
    (
        "ReduceLROnPlateau.step",
        "metrics",
        "None",
        plateau,
        step(),
        TypeError,
        ("metrics", "None"),
        "Call step(metric) with the value that should improve.",
    ),
    (
        "ReduceLROnPlateau.step",
        "metrics",
        "nan",
        plateau,
        step(math.nan),
        ValueError,
        ("metrics", "nan"),
        "Find where the nan comes from, or build with nan_is_bad=True.",
    ),
    (
        "StepLR.lr_at",
        "step",
        "-1",
        step_lr,
        lambda made: made.lr_at(-1),
        ValueError,
        ("step", "-1"),
        "Ask about epoch 0 or later.",
    ),
    (
        "StepLR.load_state_dict",
        "state_dict",
        "3",
        step_lr,
        lambda made: made.load_state_dict(3),
        TypeError,
        ("state_dict", "3"),
        SCHEDULER,
    ),
    (
        "StepLR.load_state_dict",
        "state_dict",
        "an optimizer's",
        step_lr,
        lambda made: made.load_state_dict(optimizer().state_dict()),
        TypeError,
        ("state_dict", "'param_groups'"),
        SCHEDULER,
    ),
    (
        "StepLR.load_state_dict",
        "keep",
        "'T_max'",
        step_lr,
        lambda made: made.load_state_dict(made.state_dict(), keep="T_max"),
        ValueError,
        ("keep", "T_max"),
        "Name attributes that the message lists.",
    ),
    (
        "StepLR.load_state_dict",
        "keep",
        "3",
        step_lr,
        lambda made: made.load_state_dict(made.state_dict(), keep=3),
        TypeError,
        ("keep", "3"),
        "Pass a list of names.",
    ),
    (
        "StepLR",
        "last_epoch",
        "5, the optimizer's state not being loaded",
        optimizer,
        lambda made: lr_scheduler.StepLR(made, 3, last_epoch=5),
        KeyError,
        ("initial_lr", "param_groups[0]", "5"),
        "Load the optimizer's state first, or pass initial_lr.",
    ),
    (
        "StepLR",
        "optimizer",
        "one whose lr follows a schedule",
        nothing,
        lambda _: lr_scheduler.StepLR(
            steprule.SGD([torch.ones(1)], lr=steprule.schedules.constant(0.1)), 3
        ),
        ValueError,
        ("optimizer", "group 0", "constant(0.1)"),
        "Give the optimizer a number for lr.",
    ),
    (
        "OneCycleLR",
        "total_steps",
        "None",
        optimizer,
        lambda made: lr_scheduler.OneCycleLR(made, 1.0),
        ValueError,
        ("total_steps",),
        "Pass total_steps, or both epochs and steps_per_epoch.",
    ),
    (
        "CyclicLR",
        "cycle_momentum",
        "True, of an optimizer without momentum",
        nothing,
        lambda _: lr_scheduler.CyclicLR(steprule.Adagrad([torch.ones(1)]), 0.1, 1.0),
        ValueError,
        ("cycle_momentum", "Adagrad"),
        "Pass cycle_momentum=False.",
    ),
    (
        "LambdaLR",
        "lr_lambda",
        "a function that returns text",
        optimizer,
        lambda made: lr_scheduler.LambdaLR(made, lambda epoch: "fast"),
        TypeError,
        ("lr_lambda", "'fast'", "group 0"),
        "Return a number.",
    ),
    (
        "CyclicLR",
        "scale_fn",
        "a function that returns text",
        optimizer,
        lambda made: lr_scheduler.CyclicLR(made, 0.1, 1.0, scale_fn=lambda x: "fast"),
        TypeError,
        ("scale_fn", "'fast'"),
        "Return a number.",
    ),
    (
        "LRScheduler",
        "get_lr",
        "a subclass's that returns 3",
        optimizer,
        lambda made: type("Mine", (lr_scheduler.LRScheduler,), {"get_lr": lambda self: 3})(made),
        TypeError,
        ("get_lr()", "3"),
        "Return a list with one lr for each group.",
    ),
)


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
    yield from composites()
    for where, argument, text, subject, call, error, says, remedy in METHODS:
        yield Case(ABOUT, where, argument, text, call, error, remedy, says, subject)
