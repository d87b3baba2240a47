"""Operations combined for foreach: fewer passes, the same numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from helpers import needs_torch
from torch import nn

import steprule
from steprule.engines.foreach.fused_operations import instructions_of
from steprule.language.form import form_of
from steprule.rules import OPTIMIZERS

RULES = [c for c in OPTIMIZERS.values() if c.rule and c.rule.elementwise]


def instructions(cls: Any, options: Mapping[str, Any]) -> list[str]:
    param = torch.ones(2, 2, requires_grad=True)
    group = cls([param], **options).param_groups[0]
    form = form_of(cls.rule, {**cls.extras, **group})
    return [instruction.name for instruction in instructions_of(form.recording())]


def test_adam_is_eight_passes() -> None:
    """As in torch's own foreach form."""
    names = instructions(steprule.Adam, {})
    assert sorted(names) == sorted(
        ["mul", "scaled", "mul", "addcmul", "sqrt", "div", "add", "addcdiv"]
    )


@pytest.mark.parametrize("cls", RULES, ids=lambda cls: cls.__name__)
def test_nothing_is_used_before_it_is_made(cls: Any) -> None:
    param = torch.ones(2, 2, requires_grad=True)
    group = cls([param]).param_groups[0]
    recording = form_of(cls.rule, {**cls.extras, **group}).recording()
    known = {*recording.array_inputs.values()}
    for instruction in instructions_of(recording):
        assert all(x in known for x in instruction.operands if getattr(x, "is_array", False))
        known.add(instruction.result)
    assert {x for x in recording.outputs.values() if getattr(x, "is_array", False)} <= known


@steprule.rule
def shares(param, grad, a, b, *, lr, c):  # type: ignore[no-untyped-def]
    """Products used twice, by themselves, and as outputs; differences; a mask."""
    product = c * grad
    twice = product * grad
    new_a = a + product
    new_b = b - twice
    step = new_a + 0.5 * new_a * new_b - (grad - 2.0 * a) / (1.0 + twice) * 0.25
    return param - lr * step, product, new_b + a * a


@steprule.rule
def masks(param, grad, a, *, lr):  # type: ignore[no-untyped-def]
    return param - lr * (grad * (grad > a)), a + 0.5 * (grad < param)


@steprule.rule
def scales_old(param, grad, a, b, *, lr):  # type: ignore[no-untyped-def]
    """A slot's new value may be made of another's old one, in whose memory it must not stay."""
    return param - lr * grad, param * 0.5, a + grad


@steprule.rule
def rotates(param, grad, a, b, *, lr):  # type: ignore[no-untyped-def]
    return param - lr * grad, b, a + grad


@pytest.mark.parametrize(
    ("rule", "options"),
    [(scales_old, {}), (rotates, {}), (shares, {"c": 0.3}), (masks, {})],
    ids=["scales_old", "rotates", "shares", "masks"],
)
def test_combined_passes_give_the_rules_numbers(rule: Any, options: Any) -> None:
    cls, results = steprule.make_optimizer(rule, lr=0.1, **options), []
    for engine in ("eager", "foreach"):
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(5, generator=generator).double().requires_grad_() for _ in range(3)]
        optimizer = cls(params, engine=engine)
        for _ in range(4):
            for param in params:
                param.grad = torch.randn(5, generator=generator).double()
            before = [param.grad.clone() for param in params]
            optimizer.step()
            assert all(map(torch.equal, before, (param.grad for param in params)))
        results.append([*params, *(x for p in params for x in optimizer.state[p].values())])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_a_gradient_is_left_alone_beside_one_of_another_dtype() -> None:
    needs_torch("2.10", "a gradient has its parameter's dtype")
    params = [nn.Parameter(torch.ones(4)) for _ in range(2)]
    for param, dtype in zip(params, (torch.bfloat16, torch.float32), strict=True):
        param.grad_dtype = None
        param.grad = torch.ones(4, dtype=dtype)
    steprule.Adam(params, lr=0.1, foreach=True, weight_decay=0.1).step()
    assert all(torch.equal(param.grad.float(), torch.ones(4)) for param in params)
