"""A rule is run once on symbols: what is recorded, and what a rule may not do."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from helpers import elementwise_optimizers

from steprule.language.form import form_of
from steprule.language.recording import record
from steprule.language.rule import rule
from steprule.ops import lerp, maximum, sqrt, where
from steprule.rules import OPTIMIZERS


def recorded(function: Any, *scalars: str, **flags: Any) -> Any:
    names = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_OR_KEYWORD
    ]
    return record(function, dict.fromkeys(names, True), scalars, flags)


def test_scalar_work_is_kept_apart_from_array_work() -> None:
    def update(param: Any, grad: Any, *, lr: Any, step: Any) -> Any:
        return param - lr / (1 - 0.9**step) * grad

    recording = recorded(update, "lr", "step")
    assert [o.name for o in recording.scalar_operations] == ["pow", "sub", "div"]
    assert [o.name for o in recording.array_operations] == ["mul", "sub"]


def test_equal_expressions_are_recorded_once_and_unused_ones_not_at_all() -> None:
    def update(param: Any, grad: Any, *, lr: Any) -> Any:
        _unused = sqrt(grad)
        return param - lr * (grad * grad) - (grad * grad)

    assert [o.name for o in recorded(update, "lr").array_operations] == ["mul", "mul", "sub", "sub"]


def test_scalars_are_evaluated_in_float64() -> None:
    def update(param: Any, grad: Any, *, beta: Any) -> Any:
        return param * (1 - beta), grad

    recording = record(
        lambda param, grad, *, beta: param * (1 - beta), {"param": True, "grad": True}, ["beta"], {}
    )
    (value,) = recording.scalars_for_arrays()
    assert recording.scalars({"beta": 0.999})[value] == 1 - 0.999


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda param, grad: param if grad > 0 else grad, "use where"),
        (lambda param, grad: max(param, grad), "use where"),
        (lambda param, grad: param - float(grad), "may not turn a value"),
        (lambda param, grad: param - np.float64(1) * np.sqrt(grad), "not numpy"),
        (lambda param, grad: param - "0.1", "numbers only"),
        (lambda param, grad: (param, grad), "must return 1"),
        (lambda param, grad: None, "None for slot"),
    ],
    ids=["if", "max", "float", "numpy", "text", "too many", "none"],
)
def test_what_a_rule_may_not_do_is_said_plainly(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        recorded(function)


def test_operations_agree_on_numbers_and_tensors() -> None:
    numbers = [-2.0, -0.0, 0.5, 3.0]
    tensor = torch.tensor(numbers, dtype=torch.float64)
    for op in (
        sqrt,
        abs,
        lambda x: maximum(x, 0.25),
        lambda x: where(x > 0, 1.0, -1.0),
        lambda x: lerp(x, 1.0, 0.25),
    ):
        expected = torch.tensor([op(x) for x in numbers], dtype=torch.float64)
        # Outside an engine a choice between two numbers has no dtype to go by.
        torch.testing.assert_close(op(tensor), expected, equal_nan=True, check_dtype=False)


@pytest.mark.parametrize("name", elementwise_optimizers())
def test_every_rule_records_and_reads_nothing_it_does_not_need(name: str) -> None:
    cls = OPTIMIZERS[name.lower()]
    options = {**cls.extras, **cls([torch.zeros(2, requires_grad=True)]).defaults}
    assert cls.rule is not None
    recording = form_of(cls.rule, options).recording()
    used = {
        x for o in (*recording.scalar_operations, *recording.array_operations) for x in o.operands
    }
    assert recording.array_inputs["param"] in used
    assert recording.array_inputs["grad"] in used


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda weight, grad, *, lr: weight, "param and grad first"),
        (lambda param, grad, *slots, lr: param, "args"),
    ],
)
def test_a_function_of_another_form_is_no_rule(function: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        rule(function)


def test_a_slot_that_is_not_there_is_refused() -> None:
    from steprule.language.rule import Slot

    with pytest.raises(TypeError, match="no slot velocity"):

        @rule(velocity=Slot())
        def update(param: Any, grad: Any, *, lr: Any) -> Any:
            return param - lr * grad
