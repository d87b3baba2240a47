"""Steps: gradients, parameters and state that do not fit, or no longer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

import steprule
from error_cases.case import Case
from steprule.schedules import linear

ABOUT = "Steps and gradients"


def spoilt(spoil: Callable[[Any, torch.Tensor], object], **options: Any) -> Callable[[], Any]:
    """Make an optimizer that has taken a step and is then spoilt."""

    def make() -> Any:
        weight = torch.ones(2, requires_grad=True)
        made = steprule.Adam([weight], **options)
        weight.grad = torch.ones(2)
        made.step()
        spoil(made, weight)
        return made

    return make


def with_state(**entries: Any) -> Callable[[], Any]:
    return spoilt(lambda made, weight: made.state[weight].update(entries))


def with_param(dtype: torch.dtype, cls: Any = steprule.Adam) -> Callable[[], Any]:
    def make() -> Any:
        weight = torch.ones(2, 2).to(dtype)
        weight.grad = torch.ones(2, 2).to(dtype)
        return cls([("embedding", weight)])

    return make


def with_sparse(cls: Any, **options: Any) -> Callable[[], Any]:
    def make() -> Any:
        weight = torch.ones(2, requires_grad=True)
        weight.grad = torch.ones(2).to_sparse()
        return cls([weight], **options)

    return make


def on_meta() -> Any:
    weight = torch.ones(2, device="meta", requires_grad=True)
    weight.grad = torch.ones(2, device="meta")
    return steprule.Adam([weight], fused=True)


def resize(made: Any, weight: torch.Tensor) -> None:
    weight.data = torch.ones(3)


def move(made: Any, weight: torch.Tensor) -> None:
    weight.data = weight.data.to(torch.complex64)


def freed(what: str, engine: str) -> Callable[[], Any]:
    """Make an optimizer whose parameter, gradient or state has lost its memory."""

    def spoil(made: Any, weight: torch.Tensor) -> None:
        entry = made.state[weight]
        tensor = {"param": weight, "grad": weight.grad, "state": entry["exp_avg"]}[what]
        tensor.untyped_storage().resize_(0)

    return spoilt(spoil, engine=engine)


#: Argument, given, subject, error, what the message says, remedy.
STEPS: tuple[tuple[str, str, Callable[[], Any], type[Exception], tuple[str, ...], str], ...] = (
    *(
        (
            argument,
            f"without memory, on engine {engine}",
            freed(what, engine),
            RuntimeError,
            ("parameter 0 of group 0", "memory"),
            "Gather or compute it again before step().",
        )
        for engine in ("eager", "foreach", "fused")
        for what, argument in (("param", "param"), ("grad", "param.grad"), ("state", "state"))
    ),
    (
        "param.grad",
        "of another shape: the parameter was resized",
        spoilt(resize),
        RuntimeError,
        ("parameter 0 of group 0", "(2,)", "(3,)"),
        "Call zero_grad() after changing a parameter's data.",
    ),
    (
        "param.grad",
        "real: the parameter became complex",
        spoilt(move),
        RuntimeError,
        ("parameter 0 of group 0", "torch.float32", "torch.complex64"),
        "Call zero_grad() after changing a parameter's data.",
    ),
    (
        "param",
        "of integers",
        with_param(torch.int32),
        RuntimeError,
        ("'embedding'", "torch.int32"),
        "Leave it out of the optimizer, or convert it with param.float().",
    ),
    (
        "param",
        "of bools",
        with_param(torch.bool),
        RuntimeError,
        ("'embedding'", "torch.bool"),
        "Leave masks out of the optimizer: they are buffers.",
    ),
    (
        "param",
        "complex, of a rule for real numbers",
        with_param(torch.complex64, steprule.Muon),
        RuntimeError,
        ("complex", "'embedding'"),
        "Give it to an optimizer that takes complex parameters.",
    ),
    (
        "param",
        "on meta, with fused=True",
        on_meta,
        RuntimeError,
        ("`fused=True`", "parameter 0 of group 0", "meta"),
        "Give the model its memory first: model.to_empty(device=...).",
    ),
    (
        "param.grad",
        "sparse, of a rule for dense ones",
        with_sparse(steprule.RMSprop),
        RuntimeError,
        ("sparse", "parameter 0 of group 0"),
        "Make it dense (sparse=False in the embedding), or take an optimizer that is listed.",
    ),
    (
        "param.grad",
        "sparse, with weight_decay",
        with_sparse(steprule.SGD, weight_decay=0.1),
        RuntimeError,
        ("weight_decay", "parameter 0 of group 0"),
        "Put it in a group with weight_decay=0.",
    ),
    (
        "state",
        "exp_avg of another shape",
        with_state(exp_avg=torch.ones(3)),
        RuntimeError,
        ("'exp_avg'", "parameter 0 of group 0", "(3,)"),
        "Resize the state with the parameter, or delete it: del optimizer.state[param].",
    ),
    (
        "state",
        "exp_avg of integers",
        with_state(exp_avg=torch.ones(2, dtype=torch.int64)),
        RuntimeError,
        ("'exp_avg'", "parameter 0 of group 0", "torch.int64"),
        "Keep state in floating-point tensors.",
    ),
    (
        "state",
        "a step count of two numbers",
        with_state(step=torch.ones(2)),
        RuntimeError,
        ("'step'", "parameter 0 of group 0", "(2,)"),
        "Keep one number there.",
    ),
    (
        "param_groups",
        "lr = 'fast'",
        spoilt(lambda made, weight: made.param_groups[0].update(lr="fast")),
        TypeError,
        ("lr of group 0", "'fast'"),
        "Put a number there: what a group holds counts from the next step.",
    ),
    (
        "param_groups",
        "a schedule that falls below 0 at this step",
        spoilt(lambda made, weight: None, lr=linear(0.5, -1, steps=1)),
        ValueError,
        ("group 0: lr", "step 1", "-1"),
        "Mend the schedule, or bound it: linear(0.5, -1, steps=1).clip(0, 0.5).",
    ),
)


def train_sparse_adam(_: Any) -> None:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.ones(2)
    steprule.SparseAdam([weight]).step()


def nonfinite() -> Any:
    weight = torch.ones(2, requires_grad=True)
    weight.grad = torch.full((2,), torch.nan)
    return steprule.Adam([weight], on_nonfinite="raise")


def cases() -> Iterator[Case]:
    for argument, text, subject, error, says, remedy in STEPS:
        yield Case(
            ABOUT,
            "Optimizer.step",
            argument,
            text,
            lambda made: made.step(),
            error,
            remedy,
            says,
            subject,
            # That message lists all classes that there are, a user's included.
            is_shown=text != "sparse, of a rule for dense ones",
        )
    yield Case(
        ABOUT,
        "SparseAdam.step",
        "param.grad",
        "dense",
        train_sparse_adam,
        RuntimeError,
        "Take Adam for dense gradients.",
        ("dense", "parameter 0 of group 0"),
    )
    yield Case(
        ABOUT,
        "Optimizer.step",
        "on_nonfinite='raise'",
        "a gradient with nan",
        lambda made: made.step(),
        RuntimeError,
        "Look at the parameters named: their gradients overflowed, or the loss was nan.",
        ("parameter 0",),
        nonfinite,
    )
