"""Functions around optimizers: combine, step_in_backward, accumulating, set_learning_rate."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch

import steprule
from error_cases import values
from error_cases.case import Case
from error_cases.parameters import optimizer, param
from steprule.schedules import constant

ABOUT = "Functions around optimizers"


bad_call = functools.partial(Case, ABOUT)


def linear() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def enter(context: Any) -> None:
    with context:
        pass


def unlike(name: str) -> type[steprule.Optimizer]:
    """Another class of the same name."""
    return type(name, (steprule.SGD,), {})


def in_two() -> Any:
    weight = param()
    return steprule.combine(steprule.SGD([weight]), steprule.Adam([weight]))


COMBINE = "Pass optimizers of steprule that have a rule: combine(Muon(hidden), AdamW(others))."
CALLS = (
    bad_call(
        "combine",
        "optimizers",
        "none",
        lambda _: steprule.combine(),
        ValueError,
        COMBINE,
        ("combine()", "optimizers"),
    ),
    bad_call(
        "combine",
        "optimizers",
        "3",
        lambda _: steprule.combine(3),
        TypeError,
        COMBINE,
        ("optimizers", "int"),
    ),
    bad_call(
        "combine",
        "optimizers",
        "torch.optim.SGD(...)",
        lambda _: steprule.combine(torch.optim.SGD([param()])),
        TypeError,
        "Take steprule's class of the same name: its arguments and checkpoints are torch's.",
        ("optimizers", "SGD", "torch's"),
    ),
    bad_call(
        "combine",
        "optimizers",
        "LBFGS(...)",
        lambda _: steprule.combine(steprule.LBFGS([param()])),
        TypeError,
        "Step LBFGS by itself: it calls its closure several times a step.",
        ("optimizers", "LBFGS"),
    ),
    bad_call(
        "combine",
        "optimizers",
        "of two engines",
        lambda _: steprule.combine(
            steprule.SGD([param()], engine="eager"), steprule.Adam([param()])
        ),
        ValueError,
        "Give both the same engine, or leave it out.",
        ("engine", "'eager'", "'auto'"),
    ),
    bad_call(
        "combine",
        "optimizers",
        "two classes of one name",
        lambda _: steprule.combine(steprule.SGD([param()]), unlike("SGD")([param()])),
        ValueError,
        "Rename one of the classes: groups say by its name what updates them.",
        ("classes", "SGD"),
    ),
    bad_call(
        "combine",
        "optimizers",
        "with a parameter in common",
        lambda _: in_two(),
        ValueError,
        "Give each parameter to one of them.",
        ("more than one parameter group", "index 0"),
    ),
    bad_call(
        "combine",
        "shared",
        "lr=0.1",
        lambda _: steprule.combine(steprule.SGD([param()]), lr=0.1),
        TypeError,
        "Give options to the optimizers themselves: only guards are for all.",
        ("combine()", "'lr'"),
    ),
    bad_call(
        "combine",
        "shared",
        "clip_grad_norm='1'",
        lambda _: steprule.combine(steprule.SGD([param()]), clip_grad_norm="1"),
        TypeError,
        "Pass a number, or None for no clipping.",
        ("group 0", "clip_grad_norm", "'1'"),
    ),
    bad_call(
        "step_in_backward",
        "model",
        "model.parameters()",
        lambda _: steprule.step_in_backward(linear().parameters(), steprule.SGD),
        TypeError,
        "Pass the module itself.",
        ("model", "generator"),
    ),
    bad_call(
        "step_in_backward",
        "make_optimizer",
        "SGD(model.parameters())",
        lambda _: steprule.step_in_backward(linear(), steprule.SGD(linear().parameters())),
        TypeError,
        "Pass the class, or a function: lambda p: SGD(p, lr=0.1).",
        ("make_optimizer", "SGD"),
    ),
    bad_call(
        "step_in_backward",
        "make_optimizer",
        "torch.optim.SGD",
        lambda _: steprule.step_in_backward(linear(), torch.optim.SGD),
        TypeError,
        "Take steprule's class of the same name.",
        ("optimizer of steprule", "SGD"),
    ),
    bad_call(
        "step_in_backward",
        "make_optimizer",
        "with on_nonfinite='skip'",
        lambda _: steprule.step_in_backward(
            linear(), lambda p: steprule.SGD(p, on_nonfinite="skip")
        ),
        ValueError,
        "Leave the option out, or step as usual.",
        ("group 0", "on_nonfinite", "'skip'"),
    ),
    bad_call(
        "shard_state",
        "optimizer",
        "torch.optim.SGD(...)",
        lambda _: steprule.shard_state(torch.optim.SGD([param()], lr=0.1)),
        TypeError,
        "Take steprule's class of the same name, or torch's ZeroRedundancyOptimizer.",
        ("optimizer of steprule", "SGD", "ZeroRedundancyOptimizer"),
    ),
    bad_call(
        "shard_state",
        "optimizer",
        "LBFGS(...)",
        lambda _: steprule.shard_state(steprule.LBFGS([param()])),
        TypeError,
        "Leave it whole: it takes all parameters together.",
        ("LBFGS", "no rule"),
    ),
    bad_call(
        "shard_state",
        "optimizer",
        "SGD(...) in one process",
        steprule.shard_state,
        RuntimeError,
        "Start several, by torchrun, and call init_process_group first.",
        ("init_process_group", "torchrun"),
        optimizer,
    ),
    bad_call(
        "shard_state",
        "group",
        "3",
        lambda made: steprule.shard_state(made, 3),
        TypeError,
        "Pass a process group, or None for all ranks.",
        ("group", "int", "3"),
        optimizer,
    ),
    bad_call(
        "accumulating",
        "optimizer",
        "3",
        lambda _: enter(steprule.accumulating(3)),
        TypeError,
        "Pass what step_in_backward() returned.",
        ("optimizer", "int"),
    ),
    bad_call(
        "accumulating",
        "optimizer",
        "SGD(...)",
        lambda _: enter(steprule.accumulating(steprule.SGD([param()]))),
        ValueError,
        "Leave it out: gradients add up until step() anyway.",
        ("accumulating()", "step_in_backward"),
    ),
    bad_call(
        "set_learning_rate",
        "optimizer",
        "3",
        lambda _: steprule.set_learning_rate(3, 0.1),
        TypeError,
        "Pass the optimizer, and then the rate.",
    ),
    bad_call(
        "set_learning_rate",
        "lr",
        "[0.1, 0.2] for one group",
        lambda made: steprule.set_learning_rate(made, [0.1, 0.2]),
        ValueError,
        "Pass one number for all groups, or one for each.",
        ("learning rates", "2", "1"),
        optimizer,
    ),
    bad_call(
        "set_learning_rate",
        "lr",
        "[[0.1]]",
        lambda made: steprule.set_learning_rate(made, [[0.1]]),
        TypeError,
        "Pass one number for all groups, or one for each.",
        ("group 0", "lr", "[0.1]"),
        optimizer,
    ),
    bad_call(
        "set_learning_rate",
        "lr",
        "-1",
        lambda made: steprule.set_learning_rate(made, -1),
        ValueError,
        "Pass a number of 0 or more.",
        ("group 0", "lr", "-1"),
        optimizer,
    ),
    bad_call(
        "set_learning_rate",
        "lr",
        "constant(0.1), for torch.optim.SGD",
        lambda _: steprule.set_learning_rate(torch.optim.SGD([param()]), constant(0.1)),
        TypeError,
        "Take steprule's class, or a scheduler.",
        ("group 0", "constant(0.1)"),
    ),
)


def cases() -> Iterator[Case]:
    yield from CALLS
    for bad in values.NUMBERS:
        if bad.text not in ("[0.5]",):
            yield Case(
                ABOUT,
                "set_learning_rate",
                "lr",
                bad.text,
                lambda made, value=bad.value: steprule.set_learning_rate(made, value),
                bad.error,
                bad.remedy,
                ("group 0", "lr", bad.expected),
                optimizer,
                is_shown=False,
            )
