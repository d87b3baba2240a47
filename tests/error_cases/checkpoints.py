"""Files of optimizers and runs, what is kept and renamed on loading, and running averages."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import steprule
from error_cases.case import Case, nothing
from steprule.lr_scheduler import StepLR

ABOUT = "Checkpoints and averages"
FOLDER = Path(tempfile.gettempdir()) / "steprule-error-cases"


def named(**options: Any) -> Any:
    weight = torch.ones(2, requires_grad=True)
    made = steprule.Adam([("weight", weight)], **options)
    weight.grad = torch.ones(2)
    made.step()
    return made


def within_averages() -> Any:
    """An optimizer whose parameters are at their averages."""
    made = named(ema_decay=0.9)
    block = made.averaged()
    block.__enter__()
    made._kept_open = block
    return made


def with_file(call: Callable[[Any, str], object], spoil: Any = None) -> Callable[[Any], object]:
    """Make a call that is given a file of the optimizer's own, perhaps spoilt."""

    def act(made: Any) -> None:
        FOLDER.mkdir(exist_ok=True)
        path = FOLDER / "file"
        (made or named()).save(path)
        if spoil is not None:
            spoil(path)
        with contextlib.ExitStack() as stack:
            stack.callback(path.unlink)
            try:
                call(made, str(path))
            except Exception as error:
                # The folder's name is another on every machine.
                error.args = tuple(str(x).replace(str(FOLDER), "folder") for x in error.args)
                raise

    return act


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def no_checkpoint(path: Path) -> None:
    torch.save({"weight": torch.ones(2)}, path)


def renamed_to(other: Any) -> Callable[[Any], object]:
    return lambda made: made.load_state_dict(made.state_dict(), rename=other)


Row = tuple[str, str, str, Callable[[Any], object], type[Exception], tuple[str, ...], str, Any]
LOAD = "Optimizer.load_state_dict"
#: Where, argument, given, call, error, what the message says, remedy, subject.
ROWS: tuple[Row, ...] = (
    (
        LOAD,
        "state_dict",
        "of Adamax",
        lambda made: made.load_state_dict(adamax().state_dict()),
        ValueError,
        ("Adam", "'weight'", "'exp_inf'"),
        "Load it into the optimizer that it is of.",
        named,
    ),
    (
        LOAD,
        "state_dict",
        "with other names",
        lambda made: made.load_state_dict(other_names().state_dict()),
        ValueError,
        ("'weight'", "'bias'"),
        "Say rename={'bias': 'weight'} if it has another name now, or strict=False.",
        named,
    ),
    (
        LOAD,
        "state_dict",
        "with 'step' = None",
        lambda made: made.load_state_dict(with_step(made, None)),
        ValueError,
        ("'step'", "'weight'", "None"),
        "Pass a state dict as it was saved.",
        named,
    ),
    (
        LOAD,
        "state_dict",
        "with state on meta",
        lambda made: made.load_state_dict(with_step(made, torch.ones((), device="meta"))),
        ValueError,
        ("'step'", "'weight'", "meta"),
        "Load the state dict with its numbers.",
        named,
    ),
    (
        LOAD,
        "strict",
        "'no'",
        lambda made: made.load_state_dict(made.state_dict(), strict="no"),
        TypeError,
        (),
        "Pass True or False.",
        named,
    ),
    (
        LOAD,
        "keep",
        "'lrate'",
        lambda made: made.load_state_dict(made.state_dict(), keep=["lrate"]),
        ValueError,
        (),
        "Name an option that the message lists.",
        named,
    ),
    (
        LOAD,
        "keep",
        "3",
        lambda made: made.load_state_dict(made.state_dict(), keep=3),
        TypeError,
        (),
        "Pass names: keep=('lr', 'weight_decay').",
        named,
    ),
    (
        LOAD,
        "rename",
        "{'wait': 'weight'}",
        renamed_to({"wait": "weight"}),
        ValueError,
        ("rename", "'wait'"),
        "Name a parameter that was saved; the message lists them.",
        named,
    ),
    (
        LOAD,
        "rename",
        "['weight']",
        renamed_to(["weight"]),
        TypeError,
        (),
        "Pass a dict of old names to new ones, or a function.",
        named,
    ),
    (
        "Optimizer.save",
        "path",
        "a group with a function in it",
        lambda made: with_file(lambda one, path: one.save(path))(with_function(made)),
        TypeError,
        ("param_groups", "'mine'", "function"),
        "Take it out of the group while it is saved.",
        named,
    ),
    (
        "Optimizer.load",
        "path",
        "a file that was cut short",
        with_file(lambda made, path: made.load(path), cut_short),
        steprule.CheckpointError,
        ("file", "damaged"),
        "Take another copy of it.",
        named,
    ),
    (
        "Optimizer.load",
        "path",
        "a file of torch.save",
        with_file(lambda made, path: made.load(path), no_checkpoint),
        steprule.CheckpointError,
        ("file", "safetensors"),
        "Load it with torch.load, and its state dict with load_state_dict.",
        named,
    ),
    (
        "Optimizer.load",
        "strict",
        "3",
        with_file(lambda made, path: made.load(path, strict=3)),
        TypeError,
        (),
        "Pass True or False.",
        named,
    ),
    (
        "Optimizer.load",
        "keep",
        "'lrate'",
        with_file(lambda made, path: made.load(path, keep="lrate")),
        ValueError,
        (),
        "Name an option that the message lists.",
        named,
    ),
    (
        "Optimizer.load",
        "rename",
        "3",
        with_file(lambda made, path: made.load(path, rename=3)),
        TypeError,
        (),
        "Pass a dict of old names to new ones, or a function.",
        named,
    ),
    (
        "Optimizer.averaged",
        "self",
        "without ema_decay",
        lambda made: made.averaged().__enter__(),
        RuntimeError,
        ("ema_decay",),
        "Pass ema_decay=0.999 to the optimizer.",
        named,
    ),
    (
        "Optimizer.step",
        "self",
        "within optimizer.averaged()",
        lambda made: made.step(),
        RuntimeError,
        ("averaged()",),
        "Step after the block.",
        within_averages,
    ),
    (
        "save_training",
        "step",
        "1.5",
        lambda _: steprule.save_training("file", step=1.5),  # type: ignore[arg-type]
        TypeError,
        (),
        "Pass an integer.",
        nothing,
    ),
    (
        "save_training",
        "extra",
        "a function",
        lambda _: steprule.save_training("file", extra={"loss": print}),
        TypeError,
        ("extra['loss']", "builtin_function"),
        "Save numbers, strings, lists, tuples, dicts, tensors and arrays.",
        nothing,
    ),
    (
        "save_training",
        "random_state",
        "'no'",
        lambda _: steprule.save_training("file", random_state="no"),  # type: ignore[arg-type]
        TypeError,
        (),
        "Pass True or False.",
        nothing,
    ),
    (
        "save_training",
        "path",
        "3.5",
        lambda _: steprule.save_training(3.5),  # type: ignore[arg-type]
        TypeError,
        ("path", "3.5"),
        "Pass a string or a path.",
        nothing,
    ),
    *(
        (
            "save_training",
            argument,
            "3",
            lambda _, argument=argument: steprule.save_training("file", **{argument: 3}),
            TypeError,
            (argument, "int"),
            "Pass the object itself, a list or a dict of such.",
            nothing,
        )
        for argument in ("model", "optimizer", "schedulers")
    ),
    *(
        (
            "load_training",
            argument,
            "more than was saved",
            with_file(
                lambda made, path, argument=argument, part=part: steprule.load_training(
                    path, **{argument: part(made)}
                )
            ),
            steprule.CheckpointError,
            (argument,),
            "Ask for what was saved, in the same form.",
            named,
        )
        for argument, part in (
            ("model", lambda made: torch.nn.Linear(1, 1)),
            ("optimizer", lambda made: {"a": made, "b": made}),
            ("schedulers", lambda made: StepLR(named(), 2)),
        )
    ),
    (
        "load_training",
        "path",
        "a file that was cut short",
        with_file(lambda made, path: steprule.load_training(path, optimizer=made), cut_short),
        steprule.CheckpointError,
        ("file", "damaged"),
        "Take another copy of it.",
        named,
    ),
    (
        "load_training",
        "strict",
        "'no'",
        with_file(lambda made, path: steprule.load_training(path, strict="no")),  # type: ignore[arg-type]
        TypeError,
        (),
        "Pass True or False.",
        nothing,
    ),
    (
        "load_training",
        "keep",
        "'lrate'",
        with_file(lambda made, path: steprule.load_training(path, optimizer=made, keep="lrate")),
        ValueError,
        (),
        "Name an option of the optimizer, or an attribute of a scheduler.",
        named,
    ),
    (
        "load_training",
        "rename",
        "{'wait': 'weight'}",
        with_file(
            lambda made, path: steprule.load_training(
                path, optimizer=made, rename={"wait": "weight"}
            )
        ),
        ValueError,
        ("'wait'",),
        "Name a parameter that was saved.",
        named,
    ),
    (
        "load_training",
        "random_state",
        "True, of a file without them",
        with_file(lambda made, path: steprule.load_training(path, random_state=True)),
        steprule.CheckpointError,
        ("random states",),
        "Save with random_state=True.",
        nothing,
    ),
)


def adamax() -> Any:
    weight = torch.ones(2, requires_grad=True)
    made = steprule.Adamax([("weight", weight)])
    weight.grad = torch.ones(2)
    made.step()
    return made


def other_names() -> Any:
    weight = torch.ones(2, requires_grad=True)
    return steprule.Adam([("bias", weight)])


def with_step(made: Any, step: Any) -> Any:
    saved = made.state_dict()
    return {**saved, "state": {0: {**saved["state"][0], "step": step}}}


def with_function(made: Any) -> Any:
    saved = named()
    saved.param_groups[0]["mine"] = print
    return saved


def cases() -> Iterator[Case]:
    for where, argument, given, call, error, says, remedy, subject in ROWS:
        yield Case(ABOUT, where, argument, given, call, error, remedy, says, subject)
    for given, value, error in (
        ("1.5", 1.5, ValueError),
        ("nan", float("nan"), ValueError),
        ("'0.9'", "0.9", TypeError),
    ):
        yield Case(
            ABOUT,
            "Adam",
            "ema_decay",
            given,
            lambda _, value=value: named(ema_decay=value),
            error,
            "Pass a number in [0, 1], or None.",
        )
    yield Case(
        ABOUT,
        "SparseAdam",
        "ema_decay",
        "0.9",
        lambda _: steprule.SparseAdam([torch.ones(2, requires_grad=True)], ema_decay=0.9),
        ValueError,
        "Take an optimizer for dense gradients.",
        ("ema_decay", "SparseAdam"),
    )
