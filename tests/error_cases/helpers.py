"""Helpers around training: groups of a model, the range test of the lr, logging."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

import steprule
from error_cases.case import Case
from steprule.lr_scheduler import from_schedule
from steprule.schedules import constant

ABOUT = "Helpers"


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2), nn.Linear(2, 1))


def tied() -> nn.Module:
    made = nn.ModuleDict({"embed": nn.Embedding(3, 2), "head": nn.Linear(2, 3, bias=False)})
    made["head"].weight = made["embed"].weight
    return made


def frozen() -> nn.Module:
    return model().requires_grad_(False)


Row = tuple[str, str, dict[str, Any], type[Exception], str, tuple[str, ...], Callable[[], Any]]
NAMES = "Write a pattern of the names that the message lists; print(param_groups(model)) has all."
#: Argument, given, the call's arguments, error, remedy, what the message says, model.
GROUPS: tuple[Row, ...] = (
    (
        "model",
        "list(model.parameters())",
        {},
        TypeError,
        "Pass the model.",
        ("model", "list"),
        list,
    ),
    (
        "model",
        "a frozen model",
        {},
        ValueError,
        "Have some parameters take gradients: requires_grad_().",
        ("model", "frozen"),
        frozen,
    ),
    ("lr", "-1", {"lr": -1}, ValueError, "Pass a number of 0 or more.", (), model),
    ("lr", "'0.1'", {"lr": "0.1"}, TypeError, "Pass a number or a schedule.", (), model),
    (
        "lr",
        "'linear(1, 0, steps=4)'",
        {"lr": "linear(1, 0, steps=4)"},
        TypeError,
        "Make a schedule of the text: parse(...).",
        ("lr", "'linear(1, 0, steps=4)'", "parse"),
        model,
    ),
    (
        "lr",
        "torch.tensor(1.0)",
        {"lr": torch.tensor(1.0)},
        TypeError,
        "Pass a number; put tensors into the groups that are returned.",
        ("lr", "tensor(1.)", "float"),
        model,
    ),
    ("weight_decay", "nan", {"weight_decay": float("nan")}, ValueError, "Pass 0.01.", (), model),
    ("no_decay", "3", {"no_decay": 3}, TypeError, "Pass a list of patterns.", (), model),
    (
        "no_decay",
        "[3]",
        {"no_decay": [3]},
        TypeError,
        "Patterns are text.",
        ("no_decay", "3"),
        model,
    ),
    ("no_decay", "'scale'", {"no_decay": "scale"}, ValueError, NAMES, (), model),
    (
        "lr_scale",
        "'0'",
        {"lr": 1, "lr_scale": {"0": 2}},
        ValueError,
        NAMES,
        ("'0'", "'0.*'"),
        model,
    ),
    (
        "lr_scale",
        "'head.*' of tied weights",
        {"lr": 1, "lr_scale": {"head.*": 2}},
        ValueError,
        "Write the name under which the weight comes first.",
        ("lr_scale", "'head.*'", "embed.weight", "tied"),
        tied,
    ),
    ("lr_scale", "3", {"lr_scale": 3}, TypeError, "Pass a dict of patterns.", (), model),
    (
        "lr_scale",
        "-2",
        {"lr": 1, "lr_scale": {"0.*": -2}},
        ValueError,
        "Pass factors of 0 or more.",
        ("lr_scale", "'0.*'", "-2"),
        model,
    ),
    (
        "lr_scale",
        "without lr",
        {"lr_scale": {"0.*": 2}},
        ValueError,
        "Pass lr: groups are given it times their factor.",
        ("lr_scale", "lr=..."),
        model,
    ),
    ("layer_decay", "1.5", {"lr": 1, "layer_decay": 1.5}, ValueError, "Pass 0.75.", (), model),
    ("layer_decay", "0", {"lr": 1, "layer_decay": 0}, ValueError, "Pass 0.75.", (), model),
    (
        "layer_decay",
        "for a model without numbered layers",
        {"lr": 1, "layer_decay": 0.5},
        ValueError,
        "Pass layer_depth=lambda name: ....",
        ("layer_decay", "Linear", "layer_depth"),
        lambda: nn.Linear(2, 2),
    ),
    (
        "layer_decay",
        "for rows of layers that may lie side by side",
        {"lr": 1, "layer_decay": 0.5},
        ValueError,
        "Pass layer_depth=lambda name: ....",
        ("layer_decay", "'a'", "'b'", "layer_depth"),
        lambda: nn.ModuleDict({x: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)) for x in "ab"}),
    ),
    ("layer_depth", "3", {"lr": 1, "layer_depth": 3}, TypeError, "Pass a function.", (), model),
    (
        "layer_depth",
        "without layer_decay",
        {"lr": 1, "layer_depth": len},
        ValueError,
        "Pass layer_decay as well.",
        ("layer_depth", "layer_decay"),
        model,
    ),
    (
        "layer_depth",
        "'0.weight'",
        {"lr": 1, "layer_decay": 0.5, "layer_depth": str},
        TypeError,
        "Return a whole number.",
        (),
        model,
    ),
    (
        "layer_depth",
        "-1",
        {"lr": 1, "layer_decay": 0.5, "layer_depth": lambda name: -1},
        ValueError,
        "Count from 0.",
        (),
        model,
    ),
    ("rule", "'muon'", {"rule": "muon"}, TypeError, "Pass a dict of patterns.", (), model),
    (
        "rule",
        "'moun'",
        {"rule": {"*": "moun"}},
        ValueError,
        "Pass a name that the message lists, or a class.",
        ("rule", "'moun'", "'muon'"),
        model,
    ),
    (
        "rule",
        "torch.optim.SGD",
        {"rule": {"*": torch.optim.SGD}},
        TypeError,
        "Pass a class of steprule.",
        ("rule", "SGD"),
        model,
    ),
    (
        "rule",
        "'muon' for what is no matrix",
        {"rule": {"*.bias": "muon"}},
        ValueError,
        "Write a pattern of matrices.",
        ("rule", "Muon", "'*.bias'", "(2,)"),
        model,
    ),
    (
        "rule",
        "'muon' for convolutions",
        {"rule": {"*": "muon"}},
        ValueError,
        "Write ('muon', {'flatten': True}).",
        ("rule", "Muon", "(2, 2, 1)", "'flatten': True"),
        lambda: nn.Conv1d(2, 2, 1),
    ),
    (
        "rule",
        "'lbfgs'",
        {"rule": {"*": "lbfgs"}},
        ValueError,
        "Make it of the model's parameters: LBFGS(model.parameters()).",
        ("rule['*']", "LBFGS"),
        model,
    ),
    (
        "rule",
        "('muon', {'momentun': 0.9})",
        {"rule": {"*": ("muon", {"momentun": 0.9})}},
        TypeError,
        "Pass an option that the optimizer has.",
        ("rule['*']", "Muon", "'momentun'", "'momentum'"),
        model,
    ),
    (
        "rule",
        "('muon', {'lr': 0.02})",
        {"rule": {"*": ("muon", {"lr": 0.02})}},
        TypeError,
        "Give it to build_optimizer, in its options.",
        ("rule['*']", "lr", "build_optimizer"),
        model,
    ),
    (
        "rule",
        "two classes of one name",
        {"rule": {pattern: type("Mine", (steprule.SGD,), {}) for pattern in ("0.*", "2.*")}},
        ValueError,
        "Give one of them another name.",
        ("rule", "'Mine'"),
        model,
    ),
)


def groups_of(subject: Any, given: dict[str, Any]) -> object:
    return steprule.param_groups(subject, **given)


def group_cases() -> Iterator[Case]:
    for argument, given, arguments, error, remedy, says, subject in GROUPS:
        call = functools.partial(groups_of, given=arguments)
        yield Case(
            ABOUT, "param_groups", argument, given, call, error, remedy, says, lambda s=subject: s()
        )


def some_groups() -> list[dict[str, Any]]:
    return [
        {"params": [torch.ones(2, 2, requires_grad=True)], "optimizer": "Muon"},
        {"params": [torch.ones(2, requires_grad=True)]},
    ]


def build(*arguments: Any, **options: Any) -> Callable[[Any], object]:
    return lambda _: steprule.build_optimizer(some_groups(), *arguments, **options)


BUILD = "build_optimizer"
CALLS = (
    Case(
        ABOUT,
        BUILD,
        "groups",
        "model.parameters()",
        lambda _: steprule.build_optimizer(model().parameters()),  # type: ignore[arg-type]
        TypeError,
        "Pass groups: param_groups(model).",
        ("groups", "param_groups(model)"),
    ),
    Case(
        ABOUT,
        BUILD,
        "groups",
        "of an optimizer 'Moun'",
        lambda _: steprule.build_optimizer([{**some_groups()[0], "optimizer": "Moun"}]),
        ValueError,
        "Name an optimizer of the list, or pass what param_groups returned.",
        ("group 0", "'Moun'", "'muon'"),
    ),
    Case(
        ABOUT,
        BUILD,
        "default",
        "'adamx'",
        build("adamx"),
        ValueError,
        "Pass a name that the message lists, or a class.",
    ),
    Case(
        ABOUT,
        BUILD,
        "options",
        "{'lr': 0.1}",
        build("adamw", {"lr": 0.1}),
        TypeError,
        "Say whose: {'adamw': {'lr': 0.1}}.",
    ),
    Case(
        ABOUT,
        BUILD,
        "options",
        "of 'lion', which no group has",
        build("adamw", {"lion": {"lr": 0.1}}),
        ValueError,
        "Name an optimizer that the groups have.",
        ("options", "'lion'", "adamw"),
    ),
    Case(
        ABOUT,
        BUILD,
        "options",
        "{'adamw': {'engine': 'eager'}}",
        build("adamw", {"adamw": {"engine": "eager"}}),
        TypeError,
        "Pass engine='eager' to build_optimizer.",
        ("options['adamw']", "engine"),
    ),
    Case(
        ABOUT,
        BUILD,
        "options",
        "{'adamw': {'params': []}}",
        build("adamw", {"adamw": {"params": []}}),
        TypeError,
        "Leave it out: groups have them.",
        ("options['adamw']", "params"),
    ),
    Case(
        ABOUT,
        BUILD,
        "engine",
        "'numba'",
        build(engine="numba"),
        ValueError,
        "Pass one of the engines.",
    ),
    Case(
        ABOUT,
        "from_schedule",
        "schedule",
        "of lrs, for groups of different ones",
        lambda made: from_schedule(made, constant(0.1)),
        ValueError,
        "Pass relative=True and a schedule from 1, or a list of one for each group.",
        ("schedule", "0.1, 0.2", "relative=True"),
        lambda: steprule.SGD(
            [{"params": [torch.ones(1, requires_grad=True)], "lr": lr} for lr in (0.1, 0.2)], lr=1
        ),
    ),
)


def trained() -> Any:
    made = model()
    optimizer = steprule.SGD(made.parameters(), lr=0.1, momentum=0.9)
    made(torch.ones(2, 2)).sum().backward()
    optimizer.step()
    return [made, optimizer]


def loss(model: nn.Module, batch: Any) -> torch.Tensor:
    out: torch.Tensor = model(batch)
    return out.square().mean()


def range_test(subject: Any, **given: Any) -> object:
    made, optimizer = subject
    taken = {
        "model": made,
        "optimizer": optimizer,
        "loss_fn": loss,
        "data": [torch.ones(2, 2)],
        **given,
    }
    return steprule.lr_range_test(**taken)


POSITIVE = "Pass a number above 0."
#: Argument, given, value, error, remedy, what the message says.
RANGE_TESTS: tuple[tuple[str, str, Any, type[Exception], str, tuple[str, ...]], ...] = (
    ("model", "3", 3, TypeError, "Pass the model.", ("model", "int")),
    ("optimizer", "3", 3, TypeError, "Pass the optimizer of the model.", ("optimizer", "int")),
    (
        "optimizer",
        "of another model",
        torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1),
        ValueError,
        "Make it of this model's parameters.",
        ("optimizer", "model"),
    ),
    ("loss_fn", "3", 3, TypeError, "Pass lambda model, batch: ....", ()),
    (
        "loss_fn",
        "the loss of each row",
        lambda model, batch: model(batch),
        TypeError,
        "Return the mean.",
        ("loss_fn", "(2, 1)"),
    ),
    (
        "loss_fn",
        "nn.functional.relu",
        nn.functional.relu,
        TypeError,
        "Pass a criterion, or lambda model, batch: ....",
        ("loss_fn", "relu", "function of model and batch"),
    ),
    (
        "loss_fn",
        "a loss without a graph",
        lambda model, batch: model(batch).mean().detach(),
        ValueError,
        "Return the loss as it is computed, with gradients enabled.",
        ("loss_fn", "no parameter", "no_grad"),
    ),
    (
        "data",
        "(x, y)",
        (torch.ones(2, 2), torch.ones(2)),
        TypeError,
        "Put it in a list.",
        ("data", "tuple of tensors", "[batch]"),
    ),
    ("data", "one batch", torch.ones(2, 2), TypeError, "Put it in a list.", ("data", "[batch]")),
    ("data", "[]", [], ValueError, "Pass some batches.", ("data", "no batches")),
    ("lr_min", "0", 0, ValueError, POSITIVE, ()),
    ("lr_max", "1e-09", 1e-9, ValueError, "Pass a number above lr_min.", ()),
    ("lr_max", "inf", float("inf"), ValueError, "Pass a finite number.", ()),
    ("steps", "1", 1, ValueError, "Pass 2 or more.", ()),
    ("smoothing", "0.5", 0.5, ValueError, "Pass a share below 0.5.", ()),
    ("diverged_at", "1", 1, ValueError, "Pass a number above 1.", ()),
)


def range_test_cases() -> Iterator[Case]:
    for argument, given, value, error, remedy, says in RANGE_TESTS:
        call = functools.partial(range_test, **{argument: value})
        where = "lr_range_test"
        yield Case(ABOUT, where, argument, given, call, error, remedy, says, trained)
    yield Case(
        ABOUT,
        "lr_range_test",
        "model",
        "a frozen model",
        range_test,
        ValueError,
        "Have some parameters take gradients: requires_grad_().",
        ("model", "frozen"),
        lambda: [made := frozen(), torch.optim.SGD(made.parameters(), lr=0.1)],
    )


class Unseen(torch.optim.Optimizer):
    """A wrapper that runs no hooks, round nothing."""

    def __init__(self) -> None:
        self.param_groups = []


def ignore(values: Any, step: int) -> None:
    """Write nothing."""


def log(subject: Any, **given: Any) -> object:
    taken = {"writer": ignore, "optimizer": subject[1], **given}
    return steprule.log_to(**taken)


LOGS: tuple[tuple[str, str, Any, type[Exception], str, tuple[str, ...]], ...] = (
    (
        "writer",
        "3",
        3,
        TypeError,
        "Pass a SummaryWriter, a run of wandb, or lambda values, step: ....",
        ("writer", "add_scalar", "int"),
    ),
    (
        "writer",
        "logging.getLogger()",
        logging.getLogger("steprule"),
        TypeError,
        "Pass lambda values, step: logger.info(...).",
        ("writer", "logging.Logger"),
    ),
    ("optimizer", "3", 3, TypeError, "Pass the optimizer second.", ("optimizer", "int")),
    (
        "optimizer",
        "a wrapper that runs no hooks",
        Unseen(),
        TypeError,
        "Pass the optimizer that it wraps.",
        ("optimizer", "Unseen", "no hooks"),
    ),
    ("every", "0", 0, ValueError, "Pass 1 or more.", ()),
    ("prefix", "None", None, TypeError, "Pass text, '' for no prefix.", ()),
    ("start", "-1", -1, ValueError, "Pass the number of steps so far.", ()),
)


def log_cases() -> Iterator[Case]:
    for argument, given, value, error, remedy, says in LOGS:
        call = functools.partial(log, **{argument: value})
        yield Case(ABOUT, "log_to", argument, given, call, error, remedy, says, trained)


def cases() -> Iterator[Case]:
    yield from log_cases()
    yield from group_cases()
    yield from CALLS
    yield from range_test_cases()
