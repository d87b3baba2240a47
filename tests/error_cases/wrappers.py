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


def moved(inner: Any = None) -> Any:
    optimizer = steprule.SAM(inner or sgd())
    optimizer.first_step()
    return optimizer


def differentiable() -> Any:
    return steprule.SGD([param()], lr=0.1, differentiable=True)


def without_average() -> Any:
    optimizer = steprule.ScheduleFreeSGD([param()], lr=0.1)
    optimizer.step()
    optimizer.param_groups[0]["momentum"] = 0.0
    return optimizer


def of_other_weights() -> Any:
    optimizer = steprule.Lookahead(sgd())
    optimizer.step()
    return optimizer


def load_others(optimizer: Any) -> None:
    saved = optimizer.state_dict()
    saved["lookahead"]["slow_param"] = {0: torch.ones(3)}
    optimizer.load_state_dict(saved)


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
        "SAM.step",
        "closure",
        "lambda: None",
        lambda: steprule.SAM(steprule.SGD([torch.ones(2, requires_grad=True)])),
        lambda o: o.step(lambda: None),
        "have it call loss.backward()",
        "Call loss.backward() in the closure.",
    ),
    (
        "SGD.step",
        "order",
        "after SAM's first_step()",
        moved,
        lambda o: o.optimizer.step(),
        "restore()",
        "Step by SAM, the outer one.",
    ),
    (
        "SAM.eval",
        "order",
        "after first_step()",
        lambda: moved(steprule.ScheduleFreeSGD([param()])),
        lambda o: o.eval(),
        "restore()",
        "Change the mode after second_step().",
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


LATER: tuple[
    tuple[str, str, Callable[[Any], Any], type[Exception], str, tuple[str, ...], Callable[[], Any]],
    ...,
] = (
    (
        "steprule.SAM",
        "differentiable=True",
        steprule.SAM,
        ValueError,
        "Leave it out, or do without SAM.",
        ("differentiable=True", "gradients would be wrong"),
        differentiable,
    ),
    (
        "optimizer.k (Lookahead)",
        "k=0",
        lambda o: setattr(o, "k", 0),
        ValueError,
        "Set a whole number of steps, 1 or more.",
        ("k", "0"),
        of_other_weights,
    ),
    (
        "Lookahead.load_state_dict",
        "slow_param=of another shape",
        load_others,
        ValueError,
        "Load what was saved of this model.",
        ("slow weights of parameter 0 of group 0", "(3,)", "(2,)"),
        of_other_weights,
    ),
    (
        "steprule.combine",
        "optimizers=SAM(...)",
        lambda o: steprule.combine(steprule.SAM(o)),
        TypeError,
        "Wrap what combine() returns.",
        ("SAM(combine(...))",),
        sgd,
    ),
    (
        "ScheduleFreeSGD.step",
        "momentum=0.0",
        lambda o: o.step(),
        ValueError,
        "Keep it inside (0, 1).",
        ("momentum must be in (0, 1), got 0.0", "Let it fall to 0.1"),
        without_average,
    ),
    (
        "steprule.ScheduleFreeSGD",
        "momentum=cosine(0.9, 0.0, steps=4)",
        lambda p: steprule.ScheduleFreeSGD(
            [p], momentum=steprule.schedules.cosine(0.9, 0.0, steps=4)
        ),
        ValueError,
        "End it above 0.",
        ("momentum must be in (0, 1)", "step 4 of its schedule"),
        param,
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
    for cls, text, call, error, remedy, says, make in LATER:
        yield Case(
            about=ABOUT,
            where=cls,
            argument=text.partition("=")[0],
            given=text.partition("=")[2],
            call=call,
            error=error,
            remedy=remedy,
            says=says,
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
