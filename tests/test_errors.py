"""Bad input, call by call: refused by name, with what to do, and nothing is changed.

The calls stand in `tests/error_cases/`, from which `docs/errors.md` is written, too.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from error_cases.case import Case
from error_cases.catalogue import CASES
from error_cases.page import page

import steprule
from steprule import lr_scheduler, schedules, swa_utils
from steprule.formats.floating import has_memory
from steprule.lr_scheduler import scheduler_first

PAGE = Path(__file__).parents[1] / "docs" / "errors.md"
#: Exceptions that say that something went wrong inside, whatever their text.
ACCIDENTS = (AttributeError, IndexError, ZeroDivisionError, NameError, AssertionError)


# ---- each call -------------------------------------------------------------------------------
def seen(thing: Any) -> Any:
    """What of an object must not change, in a form that compares."""
    if isinstance(thing, torch.Tensor):
        gradient = None if thing.grad is None else seen(thing.grad)
        is_there = not thing.is_meta and has_memory(thing)  # printing freed memory crashes
        memory = thing.detach().to_dense().tolist() if is_there else []
        return str(memory), thing.dtype, thing.shape, thing.requires_grad, gradient
    if isinstance(thing, torch.nn.Module):
        return seen([thing.state_dict(keep_vars=True), thing.training])
    if isinstance(thing, torch.optim.Optimizer):
        return seen([thing.param_groups, dict(thing.state), thing.defaults])
    if isinstance(thing, torch.optim.lr_scheduler.LRScheduler):
        return seen([thing.state_dict(), thing.optimizer])
    if isinstance(thing, dict):
        return {str(id(k)) if isinstance(k, torch.Tensor) else k: seen(v) for k, v in thing.items()}
    if isinstance(thing, (list, tuple)):
        return [seen(item) for item in thing]
    return thing


@pytest.mark.parametrize("case", CASES, ids=str)
def test_it_is_refused_by_name_and_changes_nothing(case: Case) -> None:
    subject = case.subject()
    before = copy.deepcopy(seen(subject))
    with pytest.raises(case.error) as caught:
        case.call(subject)
    message = str(caught.value)
    assert type(caught.value) is case.error, message
    assert not isinstance(caught.value, ACCIDENTS), message
    for words in case.expected:
        assert words in message
    assert case.remedy.endswith(".")
    assert seen(subject) == before


def test_no_case_stands_twice() -> None:
    twice = [name for name, count in Counter(map(str, CASES)).items() if count > 1]
    assert not twice


# ---- what is no bad input ----------------------------------------------------------------------
@pytest.mark.parametrize(
    "options",
    [
        *({"amsgrad": on} for on in (1, np.True_, np.array(True), torch.tensor(True), 1.0)),
        *({"amsgrad": off} for off in (0, None, np.False_, np.array(False), torch.tensor(False))),
        *({"maximize": on} for on in (1, np.True_, torch.tensor(True))),
        *({"foreach": asked} for asked in (None, 0, 1, np.False_)),
        *({"lr": rate} for rate in (1, np.float32(0.5), np.array(0.5), torch.tensor(1))),
        *({"weight_decay": decay} for decay in (1, np.float64(0.5))),
        {"betas": [0.5, 0.75]},
        {"betas": (np.float64(0.5), 0.75)},
    ],
    ids=repr,
)
def test_what_torch_takes_and_has_a_meaning_is_taken(options: dict[str, Any]) -> None:
    found = []
    for cls in (steprule.Adam, torch.optim.Adam):
        weight = torch.ones(3, requires_grad=True)
        optimizer = cls([weight], **options)
        for gradient in (2.0, 1.0):
            weight.grad = torch.full((3,), gradient)
            optimizer.step()
        found.append(weight)
    torch.testing.assert_close(*found)


# ---- that no argument was forgotten ------------------------------------------------------------
#: What is not called, or belongs to torch.
NO_CALLABLES = {
    "OPTIMIZERS": "a dict",
    "lr_scheduler": "a module",
    "ops": "a module; what rules say, checked when they are recorded",
    "optimizer": "a module",
    "schedules": "a module",
    "swa_utils": "a module",
    "register_optimizer_step_post_hook": "torch's",
    "register_optimizer_step_pre_hook": "torch's",
    "schedules.Table": "a tuple that Schedule.table() makes",
    "swa_utils.LRScheduler": "the same as lr_scheduler.LRScheduler",
}
#: Arguments for which any value is fine, and why.
ANY_VALUE = {
    ("Optimizer", "defaults"): "options of a subclass's own: whoever writes it checks them",
    ("*", "shared"): "guards and storage, which have their cases by name",
    ("*", "args"): "handed on to a class that has its cases",
    ("*", "kwargs"): "handed on to a class that has its cases",
    ("*", "ema_decay"): "a rule's option, with cases of its own",
}


def public_callables() -> Iterator[tuple[str, Any]]:
    """What users may call of ours, by the name that cases have for it."""
    for module, prefix in (
        (steprule, ""),
        (lr_scheduler, ""),
        (scheduler_first, "scheduler_first."),
        (schedules, "schedules."),
        (swa_utils, "swa_utils."),
    ):
        for name in module.__all__:
            thing = getattr(module, name)
            known = f"{prefix}{name}" in NO_CALLABLES
            if known or not str(getattr(thing, "__module__", "")).startswith("steprule"):
                continue
            is_raised = isinstance(thing, type) and issubclass(thing, Exception)
            if callable(thing) and not is_raised:
                yield f"{prefix}{name}", thing


CALLABLES = dict(public_callables())
COVERED = {(case.where.split(".")[-1], case.argument) for case in CASES}


@pytest.mark.parametrize("name", CALLABLES)
def test_every_argument_has_a_case(name: str) -> None:
    plain = name.rpartition(".")[2]
    arguments = set(inspect.signature(CALLABLES[name]).parameters)
    fine = {argument for where, argument in ANY_VALUE if where in (name, "*")}
    assert not {one for one in arguments - fine if (plain, one) not in COVERED}


# ---- the page ----------------------------------------------------------------------------------
def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), (
        "run: python tests/error_cases/page.py > docs/errors.md"
    )
