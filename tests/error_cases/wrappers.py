"""SAM, Lookahead, and the modes of schedule-free optimizers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import steprule
from error_cases.case import Case

ABOUT = "SAM, Lookahead, schedule-free optimizers"
NUMBERS: tuple[tuple[Any, str, str, Any, type[Exception], str], ...] = (
    (steprule.SAM, "rho", "-1.0", -1.0, ValueError, "Pass 0 or more."),
    (steprule.SAM, "rho", "'0.05'", "0.05", TypeError, "Pass a number."),
    (steprule.SAM, "adaptive", "'yes'", "yes", TypeError, "Pass True or False."),
    (steprule.Lookahead, "k", "0", 0, ValueError, "Pass a whole number of steps, 1 or more."),
    (steprule.Lookahead, "k", "2.5", 2.5, ValueError, "Pass a whole number of steps, 1 or more."),
    (steprule.Lookahead, "alpha", "0.0", 0.0, ValueError, "Pass more than 0, at most 1."),
    (steprule.Lookahead, "alpha", "1.5", 1.5, ValueError, "Pass more than 0, at most 1."),
)


def param() -> Tensor:
    made = torch.ones(2, requires_grad=True)
    made.grad = torch.ones(2)
    return made


def sgd() -> Any:
    return steprule.SGD([param()], lr=0.1)


def moved() -> Any:
    optimizer = steprule.SAM(sgd())
    optimizer.first_step()
    return optimizer


def evaluated() -> Any:
    optimizer = steprule.ScheduleFreeSGD([param()], lr=0.1, ema_decay=0.9)
    optimizer.step()
    optimizer.eval()
    return optimizer


def in_averages(optimizer: Any) -> None:
    with optimizer.averaged():
        optimizer.train()


STEPS: tuple[tuple[str, str, str, Callable[[], Any], Callable[[Any], Any], str, str], ...] = (
    (
        "SAM.step",
        "closure",
        "None",
        lambda: steprule.SAM(sgd()),
        lambda o: o.step(),
        "pass a closure",
        "Pass a closure, or call first_step() and second_step().",
    ),
    (
        "SAM.second_step",
        "order",
        "no first_step()",
        lambda: steprule.SAM(sgd()),
        lambda o: o.second_step(),
        "comes after first_step()",
        "Call first_step() and a second backward pass before it.",
    ),
    (
        "SAM.state_dict",
        "order",
        "after first_step()",
        moved,
        lambda o: o.state_dict(),
        "restore()",
        "Save after second_step(), or give the step up by restore().",
    ),
    (
        "ScheduleFreeSGD.step",
        "mode",
        "eval",
        evaluated,
        lambda o: o.step(),
        "optimizer.train()",
        "Call optimizer.train() where model.train() is called.",
    ),
    (
        "ScheduleFreeSGD.train",
        "where",
        "optimizer.averaged()",
        evaluated,
        in_averages,
        "after the block",
        "Change the mode outside of that block.",
    ),
)
REFUSED: tuple[tuple[Any, str, Callable[[], Any], str, str], ...] = (
    (steprule.SAM, "SGD", lambda: steprule.SGD, "got SGD", "Make the optimizer first."),
    (
        steprule.SAM,
        "LBFGS",
        lambda: steprule.LBFGS([param()]),
        "LBFGS",
        "Wrap an optimizer that steps by given gradients.",
    ),
    (
        steprule.Lookahead,
        "SAM",
        lambda: steprule.SAM(sgd()),
        "SAM(Lookahead(optimizer))",
        "Wrap the other way round.",
    ),
    (
        steprule.Lookahead,
        "ScheduleFreeSGD",
        lambda: steprule.ScheduleFreeSGD([param()]),
        "averages its weights",
        "Use one of the two.",
    ),
)


def cases() -> Iterator[Case]:
    for cls, argument, text, value, error, remedy in NUMBERS:
        yield Case(
            about=ABOUT,
            where=f"steprule.{cls.__name__}",
            argument=argument,
            given=text,
            call=lambda base, cls=cls, given={argument: value}: cls(base, **given),
            error=error,
            remedy=remedy,
            says=(argument, text.strip("'").removesuffix(".0")),
            subject=sgd,
        )
    for cls, text, make, said, remedy in REFUSED:
        yield Case(
            about=ABOUT,
            where=f"steprule.{cls.__name__}",
            argument="optimizer",
            given=text,
            call=lambda base, cls=cls: cls(base),
            error=TypeError,
            remedy=remedy,
            says=(said,),
            subject=make,
        )
    for where, argument, text, make, call, said, remedy in STEPS:
        yield Case(
            about=ABOUT,
            where=where,
            argument=argument,
            given=text,
            call=call,
            error=RuntimeError,
            remedy=remedy,
            says=(said,),
            subject=make,
        )
    yield Case(
        about=ABOUT,
        where="steprule.ScheduleFreeSGD",
        argument="cautious",
        given="True",
        call=lambda p: steprule.ScheduleFreeSGD([p], cautious=True),
        error=ValueError,
        remedy="Leave it out.",
        says=("cautious=True",),
        subject=param,
    )
