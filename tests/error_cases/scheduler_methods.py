"""Schedulers made of others, and what schedulers' methods and the users' functions are given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch

import steprule
from error_cases.case import Case, nothing
from error_cases.schedulers import ABOUT, COUNTS, KINDS, optimizer
from steprule import lr_scheduler


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
    yield from composites()
    for where, argument, text, subject, call, error, says, remedy in METHODS:
        yield Case(ABOUT, where, argument, text, call, error, remedy, says, subject)
