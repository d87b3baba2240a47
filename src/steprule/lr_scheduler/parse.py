"""Reading a scheduler from text such as `StepLR:step_size=30,gamma=0.1`, without evaluating it."""

from __future__ import annotations

import ast
import inspect
from typing import Any

import torch
from torch.optim import SGD

import steprule.lr_scheduler as public
from steprule.lr_scheduler.base import LRScheduler
from steprule.lr_scheduler.pure import PureLR
from steprule.schedules import checks
from steprule.schedules.parse import ParseError, Reader


def scheduler_names() -> list[str]:
    """Classes that text can build: those that go by numbers alone."""
    classes = (getattr(public, name) for name in public.__all__)
    return [
        kind.__name__
        for kind in classes
        if isinstance(kind, type) and issubclass(kind, PureLR) and "Lambda" not in kind.__name__
        if kind is not public.MultiplicativeLR
    ]


def looks_like_scheduler(text: str) -> bool:
    """Tell whether `text` is meant as `Name:arguments` rather than as a schedule."""
    name = text.strip().split(":", 1)[0].split("(", 1)[0]
    return name.isidentifier() and name[:1].isupper()


def parse_scheduler(text: str, lrs: list[float]) -> PureLR:
    """Build a scheduler on a small optimizer of its own.

    Args:
        text: `Name:argument=value,...`; `lr=` among them replaces `lrs`.
        lrs: the initial lr of each group.

    Raises:
        ParseError: an unknown name, or arguments that do not fit; it points at the column.
    """
    text = text.strip()
    name, colon, arguments = text.partition(":")
    # A bracket in place of the colon makes it a call, with every column where it was.
    reader = Reader(f"{name}({arguments})" if colon else f"{name}()", shown=text)
    if name not in scheduler_names():
        known = ", ".join(scheduler_names())
        raise ParseError(f"unknown scheduler {name!r}; known: {known}", text, 1)
    call = reader.tree()
    if not isinstance(call, ast.Call) or call.args:
        raise ParseError("arguments are written name=value", text, len(name) + 2)
    where: dict[str, ast.expr] = {}
    options: dict[str, Any] = {}
    kind = getattr(public, name)
    allowed = _arguments(kind)
    for keyword in call.keywords:
        if keyword.arg not in allowed:
            reader.fail(keyword, f"{name} has no argument {keyword.arg!r}: {', '.join(allowed)}")
        where[keyword.arg] = keyword.value
        options[keyword.arg] = reader.value(keyword.value)
    return _build(kind, options, lrs, reader, where)


def _arguments(kind: type[LRScheduler]) -> list[str]:
    named = inspect.signature(kind.__init__).parameters.values()
    left_out = ("self", "optimizer", "options", "scale_fn", "last_epoch", "verbose")
    return ["lr", *(parameter.name for parameter in named if parameter.name not in left_out)]


def _build(
    kind: Any, options: dict[str, Any], lrs: list[float], reader: Reader, where: dict[str, ast.expr]
) -> PureLR:
    lr = options.pop("lr", None)
    lrs = lrs if lr is None else lr if isinstance(lr, list) else [lr]
    optimizer = None
    try:
        lrs = [checks.number("lr", value, low=0) for value in lrs]
        groups = [{"params": [torch.empty(0, requires_grad=True)], "lr": value} for value in lrs]
        optimizer = SGD(groups, lr=0.1, momentum=0.9)
        scheduler: PureLR = kind(optimizer, **options)
        return scheduler
    except (TypeError, ValueError) as error:
        problem = str(error).replace(".__init__() ", " is ")
        culprit = where.get("lr") if optimizer is None else where.get(problem.split(" ", 1)[0])
        if culprit is None:
            raise ParseError(problem, reader.text, 1) from None
        reader.fail(culprit, problem)
