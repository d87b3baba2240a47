"""Parameters and parameter groups: of constructors, and of add_param_group."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

import steprule
from error_cases.case import Case
from steprule.schedules import constant

ABOUT = "Parameters and groups"


def param(*shape: int) -> torch.Tensor:
    return torch.ones(*(shape or (2,)), requires_grad=True)


def optimizer() -> steprule.Optimizer:
    """An optimizer that has taken a step."""
    weight = param()
    weight.grad = torch.ones(2)
    made = steprule.Adam([weight], weight_decay=constant(0.1))
    made.step()
    return made


IN_A_LIST = "Put it in a list: [param]."
#: What is given as `params`, the error, what the message says, and the remedy.
PARAMS: tuple[tuple[str, Any, type[Exception], tuple[str, ...], str], ...] = (
    ("torch.ones(2)", torch.ones(2), TypeError, ("params", "torch.FloatTensor"), IN_A_LIST),
    (
        "{'params': [weight]}",
        {"params": [torch.ones(2)]},
        TypeError,
        ("params", "dict"),
        "Put groups in a list, and pass named parameters as model.named_parameters().",
    ),
    ("3", 3, TypeError, ("params", "int"), "Pass model.parameters()."),
    ("None", None, TypeError, ("params", "NoneType"), "Pass model.parameters()."),
    (
        "model.parameters",
        torch.nn.Linear(1, 1).parameters,
        TypeError,
        ("params", "method"),
        "Call it: model.parameters().",
    ),
    (
        "[]",
        [],
        ValueError,
        ("empty parameter list",),
        "Call model.parameters() anew each time: a generator is used up once.",
    ),
    (
        "nn.Linear(1, 1)",
        torch.nn.Linear(1, 1),
        TypeError,
        ("params", "Linear", "net.parameters()"),
        "Pass net.parameters().",
    ),
    (
        "nn.Sequential(nn.Linear(1, 1))",
        torch.nn.Sequential(torch.nn.Linear(1, 1)),
        TypeError,
        ("can only optimize Tensors", "Linear", "net.parameters()"),
        "Pass net.parameters().",
    ),
    (
        "{weight}",
        {torch.ones(2)},
        TypeError,
        ("parameters", "sets"),
        "Use a list, so that the order is the same in every run.",
    ),
    ("[3]", [3], TypeError, ("params", "int"), "Pass tensors only."),
    ("'abc'", "abc", TypeError, ("params", "str"), "Pass tensors, not names of files or models."),
    (
        "[[weight]]",
        [[torch.ones(2)]],
        TypeError,
        ("params", "list"),
        "Pass one flat list, or groups: [{'params': [...]}, ...].",
    ),
    (
        "[weight, {'params': [bias]}]",
        [torch.ones(2), {"params": [torch.ones(2)]}],
        TypeError,
        ("params", "dicts"),
        "Put the bare tensors in a group of their own.",
    ),
    (
        "[('weight', weight, 1)]",
        [("weight", torch.ones(2), 1)],
        TypeError,
        ("params", "(str, Tensor, int)"),
        "Pass pairs, as model.named_parameters() gives them.",
    ),
    (
        "[(weight, bias)]",
        [(torch.ones(2), torch.ones(2))],
        TypeError,
        ("params", "(Tensor, Tensor)"),
        "Pass one flat list: a tuple inside it is a name and a tensor.",
    ),
    (
        "[('weight', weight), bias]",
        [("weight", torch.ones(2)), torch.ones(2)],
        ValueError,
        ("params", "names are missing"),
        "Name all of them or none.",
    ),
    (
        "[weight * 2]",
        [param() * 2],
        ValueError,
        ("non-leaf Tensor", "index 0"),
        "Pass the tensor that it was computed from, or x.detach().requires_grad_().",
    ),
)
#: What is given as a group, likewise; for `add_param_group`, which says `group 1`.
GROUPS: tuple[tuple[str, Any, type[Exception], tuple[str, ...], str], ...] = (
    ("3", 3, TypeError, ("param_group", "int"), "Pass a dict with the key 'params'."),
    ("{'lr': 0.1}", {"lr": 0.1}, ValueError, ("group 1", "'params'"), "Add the key 'params'."),
    (
        "{'params': 3}",
        {"params": 3},
        TypeError,
        ("group 1", "params", "int"),
        "Pass a tensor or a list of tensors.",
    ),
    (
        "{'params': [None]}",
        {"params": [None]},
        TypeError,
        ("group 1", "params", "NoneType"),
        "Leave out modules without the parameter (bias=False).",
    ),
    (
        "{..., 'learning_rate': 0.1}",
        {"params": [torch.ones(2)], "learning_rate": 0.1},
        ValueError,
        ("group 1", "'learning_rate'", "'lr'"),
        "Use the option's name here; keys of your own that resemble none are let through.",
    ),
    (
        "{..., 'lr': -1}",
        {"params": [torch.ones(2)], "lr": -1},
        ValueError,
        ("group 1", "lr", "-1"),
        "Pass a number in the range that the message gives.",
    ),
    (
        "{..., 3: 4}",
        {"params": [torch.ones(2)], 3: 4},
        TypeError,
        ("group 1", "3"),
        "Use text for keys of your own.",
    ),
    (
        "{..., 'schedules': 3}",
        {"params": [torch.ones(2)], "schedules": 3},
        TypeError,
        ("group 1", "schedules", "3"),
        "Give a schedule in place of an option's number: lr=cosine(...).",
    ),
    (
        "{..., 'schedules': {'lr': 3}}",
        {"params": [torch.ones(2)], "schedules": {"lr": 3}},
        TypeError,
        ("group 1", "schedules['lr']", "3"),
        "Give a schedule in place of an option's number: lr=cosine(...).",
    ),
    (
        "{..., 'schedules': {'rate': constant(1)}}",
        {"params": [torch.ones(2)], "schedules": {"rate": constant(1)}, "schedule_step": 0},
        ValueError,
        ("group 1", "schedules", "'rate'"),
        "Give a schedule in place of an option's number: lr=cosine(...).",
    ),
    (
        "{..., 'schedules': {...}, 'schedule_step': -1}",
        {"params": [torch.ones(2)], "schedules": {"lr": constant(1)}, "schedule_step": -1},
        ValueError,
        ("group 1", "schedule_step", "-1"),
        "Leave both keys out; the optimizer counts the steps.",
    ),
    (
        "{..., 'amsgrad': constant(1)}",
        {"params": [torch.ones(2)], "amsgrad": constant(1)},
        TypeError,
        ("group 1", "amsgrad"),
        "Only numbers can be scheduled.",
    ),
    (
        "{'params': [('weight', weight)]}",
        {"params": [("weight", torch.ones(2))]},
        ValueError,
        ("with/without names",),
        "Name the parameters of all groups or of none.",
    ),
)


def construct(params: Any) -> Any:
    return lambda _: steprule.Adam(params)


def add(group: Any) -> Any:
    return lambda made: made.add_param_group(group)


def base(params: Any) -> Any:
    return lambda _: steprule.Optimizer(params, {"lr": 0.1})


def cases() -> Iterator[Case]:
    for text, params, error, says, remedy in PARAMS:
        yield Case(ABOUT, "Adam", "params", text, construct(params), error, remedy, says)
        yield Case(
            ABOUT, "Optimizer", "params", text, base(params), error, remedy, says, is_shown=False
        )
    for cls in (one for one in steprule.OPTIMIZERS.values() if one is not steprule.Adam):
        for text, params in (("3", 3), ("[3]", [3])):
            yield Case(
                ABOUT,
                cls.__name__,
                "params",
                text,
                lambda _, cls=cls, params=params: cls(params),
                TypeError,
                "Pass tensors only.",
                ("params", "int"),
                is_shown=False,
            )
    for text, group, error, says, remedy in GROUPS:
        yield Case(
            ABOUT,
            "Optimizer.add_param_group",
            "param_group",
            text,
            add(group),
            error,
            remedy,
            says,
            optimizer,
        )
    yield Case(
        ABOUT,
        "Optimizer.add_param_group",
        "param_group",
        "a parameter that is in group 0 already",
        lambda made: made.add_param_group({"params": made.param_groups[0]["params"]}),
        ValueError,
        "Take it out of one of the two groups.",
        ("more than one parameter group", "index 0", "group 0"),
        optimizer,
    )
    yield Case(
        ABOUT,
        "Optimizer",
        "defaults",
        "{'lr': 0.1} without a rule",
        lambda _: steprule.Optimizer([param()], {"lr": 0.1}).step(),
        NotImplementedError,
        "Derive from it with a rule, or write step().",
        ("has no rule",),
    )
    yield Case(
        ABOUT,
        "Optimizer",
        "engine",
        "'gpu'",
        lambda _: steprule.Optimizer([param()], {"lr": 0.1}, engine="gpu"),
        ValueError,
        "Pass one of the engines that the message lists.",
    )
    yield Case(
        ABOUT,
        "Muon",
        "params",
        "[bias]",
        lambda _: steprule.Muon([param(3)]),
        ValueError,
        "Give biases, norms and embeddings to another optimizer, and combine() the two.",
        ("2D parameters", "index 0", "(3,)"),
    )
    yield Case(
        ABOUT,
        "SparseAdam",
        "params",
        "[torch.ones(2).to_sparse()]",
        lambda _: steprule.SparseAdam([torch.ones(2).to_sparse()]),
        ValueError,
        "Pass dense parameters; their gradients are sparse (nn.Embedding(sparse=True)).",
        ("dense parameter", "index 0"),
    )
