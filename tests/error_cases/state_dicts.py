"""State dicts of optimizers that do not fit."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch

from error_cases.case import Case
from error_cases.parameters import optimizer

ABOUT = "State dicts of optimizers"
SAME = "Build model and optimizer as in the run that was saved."


def put(**options: Any) -> Callable[[Any], object]:
    return lambda saved: saved["param_groups"][0].update(options)


def keep(**entries: Any) -> Callable[[Any], object]:
    return lambda saved: saved["state"][0].update(entries)


LINEAR = {"schedule": "linear", "start": 1, "stop": 0, "steps": 9}
#: Given, what spoils a state dict, error, what the message says, remedy.
SPOILT: tuple[tuple[str, Callable[[Any], object], type[Exception], tuple[str, ...], str], ...] = (
    (
        "without 'state'",
        lambda saved: saved.pop("state"),
        TypeError,
        ("state_dict", "'state'"),
        "Pass what the optimizer's state_dict() returned: checkpoint['optimizer'], most often.",
    ),
    (
        "'param_groups' of other kind",
        lambda saved: saved.update(param_groups=3),
        TypeError,
        ("state_dict['param_groups']",),
        "Pass a state dict as it was saved.",
    ),
    (
        "'state' of other kind",
        lambda saved: saved.update(state=[]),
        TypeError,
        ("state_dict['state']",),
        "Pass a state dict as it was saved.",
    ),
    (
        "more groups",
        lambda saved: saved["param_groups"].append({"params": []}),
        ValueError,
        ("number of parameter groups", "2", "1"),
        SAME,
    ),
    (
        "fewer parameters",
        lambda saved: saved["param_groups"][0].update(params=[]),
        ValueError,
        ("group 0", "0 parameters", "1 in the optimizer"),
        SAME,
    ),
    (
        "state of another shape",
        keep(exp_avg=torch.ones(9)),
        ValueError,
        ("'exp_avg'", "parameter 0 of group 0", "(9,)"),
        SAME,
    ),
    (
        "state of integers",
        keep(exp_avg=torch.ones(2, dtype=torch.int64)),
        ValueError,
        ("'exp_avg'", "parameter 0 of group 0", "torch.int64"),
        "Load it with the version that saved it, or register the state format first.",
    ),
    (
        "state that is no dict",
        lambda saved: saved["state"].update({0: 3}),
        TypeError,
        ("parameter 0 of group 0", "3"),
        "Pass a state dict as it was saved.",
    ),
    (
        "lr = -1",
        put(lr=-1.0),
        ValueError,
        ("group 0", "lr", "-1.0"),
        "Correct the number in the state dict.",
    ),
    (
        "maximize = 'False'",
        put(maximize="False"),
        TypeError,
        ("group 0", "maximize", "'False'"),
        "Put True or False there.",
    ),
    (
        "schedules = 3",
        put(schedules=3),
        TypeError,
        ("schedules", "3"),
        "Take the key out; the options then keep their numbers.",
    ),
    (
        "schedules that are none",
        put(schedules={"lr": 3}, schedule_step=1),
        ValueError,
        ("schedule", "3"),
        "Take it out; the option then keeps its number.",
    ),
    (
        "a schedule for no option",
        put(schedules={"rate": LINEAR}, schedule_step=1),
        ValueError,
        ("schedules", "'rate'"),
        "Take it out.",
    ),
    (
        "schedules at step -1",
        put(schedules={"lr": LINEAR}, schedule_step=-1),
        ValueError,
        ("schedule_step", "-1"),
        "Put the number of steps there that the schedules have seen.",
    ),
)


def load(spoil: Callable[[Any], object]) -> Callable[[Any], object]:
    def call(made: Any) -> None:
        saved = copy.deepcopy(made.state_dict())
        spoil(saved)
        made.load_state_dict(saved)

    return call


def cases() -> Iterator[Case]:
    for text, spoil, error, says, remedy in SPOILT:
        yield Case(
            ABOUT,
            "Optimizer.load_state_dict",
            "state_dict",
            text,
            load(spoil),
            error,
            remedy,
            says,
            optimizer,
        )
    yield Case(
        ABOUT,
        "Optimizer.load_state_dict",
        "state_dict",
        "3",
        lambda made: made.load_state_dict(3),
        TypeError,
        "Pass what the optimizer's state_dict() returned.",
        ("state_dict", "'state'"),
        optimizer,
    )
