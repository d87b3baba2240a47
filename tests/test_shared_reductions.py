"""Sums over several parameters in rules: the same on every engine, as the formula says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from helpers import ENGINES

import steprule
from steprule import matrix_ops
from steprule.ops import (
    all_finite,
    dot_of,
    max_of,
    mean_of,
    norm_of,
    square,
    sum_of,
    tanh,
    where,
)

SHAPES = [(5, 7), (3,), (), (100, 101), (0, 4), (1, 9001)]


@steprule.rule(seen=steprule.Slot(shape="scalar"))
def every_scope(param, grad, m, seen, *, lr):  # type: ignore[no-untyped-def]
    """Sums of sums, of each scope, one of them needed by nothing, one asked for twice."""
    centred = grad - mean_of(grad, over="group")
    norm = norm_of(centred, over="all")
    largest = max_of(param, over="all") + 0.1
    m = 0.5 * m + grad / (norm + 0.1)
    own = norm_of(m)
    agreement = dot_of(m, param, over="group") / (1 + own + norm_of(centred, over="all"))
    sum_of(square(m), over="all")
    finite = where(all_finite(grad, over="all"), 1.0, 0.0)
    param = param - lr * m * (1 + 0.1 * tanh(agreement)) / largest * finite
    return param, m, seen + sum_of(m, over="all") * finite


EveryScope: Any = steprule.make_optimizer(every_scope, name="EveryScope", lr=0.1)
TOLERANCES = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.complex128: {"rtol": 1e-11, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
}


def made_params(dtype: torch.dtype = torch.float32) -> list[Any]:
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    return [p.to(dtype).requires_grad_() for p in made]


def give_grads(params: list[Any], step: int) -> None:
    generator = torch.Generator().manual_seed(100 + step)
    for i, param in enumerate(params):
        found = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        param.grad = None if (step + i) % 4 == 3 else found.to(param.dtype)


def trained(engine: str, dtype: torch.dtype = torch.float32, *, backwards: bool = False) -> Any:
    params = made_params(dtype)
    parts = [params[:2], params[2:]]
    if backwards:
        parts = [part[::-1] for part in parts]
    groups = [{"params": parts[0], "weight_decay": 0.1}, {"params": parts[1], "lr": 0.03}]
    optimizer = EveryScope(groups, engine=engine)
    for step in range(5):
        give_grads(params, step)
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} <= {engine, "none"}
    return params, optimizer


def by_hand(params: list[Any]) -> None:
    """The rule above in float64, written for whole lists."""
    ms = [torch.zeros_like(p) for p in params]
    group_of = [0, 0, *[1] * (len(params) - 2)]
    for step in range(5):
        give_grads(params, step)
        with torch.no_grad():
            live = [i for i, p in enumerate(params) if p.grad is not None]
            grads = {i: params[i].grad + (0.1 * params[i] if group_of[i] == 0 else 0) for i in live}

            def of_group(i: int, values: dict[int, Any]) -> list[Any]:
                return [v for j, v in values.items() if group_of[j] == group_of[i]]

            means = {
                i: sum(g.sum() for g in of_group(i, grads))
                / sum(g.numel() for g in of_group(i, grads))
                for i in live
            }
            norm = math.sqrt(sum(float((grads[i] - means[i]).square().sum()) for i in live))
            largest = max(float(params[i].abs().max()) for i in live if params[i].numel()) + 0.1
            for i in live:
                ms[i] = 0.5 * ms[i] + grads[i] / (norm + 0.1)
            dots = {i: (ms[i] * params[i]).sum() for i in live}
            for i in live:
                agreement = sum(of_group(i, dots)) / (1 + ms[i].norm() + norm)
                lr = 0.1 if group_of[i] == 0 else 0.03
                dots_now = lr * ms[i] * (1 + 0.1 * torch.tanh(agreement)) / largest
                params[i] -= dots_now


@pytest.mark.parametrize("engine", ENGINES)
def test_a_rule_does_what_its_formula_says(engine: str) -> None:
    params, _ = trained(engine, torch.float64)
    expected = made_params(torch.float64)
    by_hand(expected)
    torch.testing.assert_close(params, expected, **TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("engine", ENGINES[1:])
def test_engines_agree(engine: str, dtype: torch.dtype) -> None:
    ours, optimizer = trained(engine, dtype)
    theirs, other = trained("eager", dtype)
    torch.testing.assert_close(ours, theirs, **TOLERANCES[dtype])
    seen = [[o.state[p]["seen"] for p in ps] for o, ps in ((optimizer, ours), (other, theirs))]
    torch.testing.assert_close(*seen, rtol=1e-4, atol=1e-4)


def test_neither_order_nor_threads_change_a_bit() -> None:
    before = torch.get_num_threads()
    expected, _ = trained("fused")
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for backwards in (False, True):
                params, _ = trained("fused", backwards=backwards)
                torch.testing.assert_close(params, expected, rtol=0, atol=0)
    finally:
        torch.set_num_threads(before)


def test_parameters_on_different_engines_add_up() -> None:
    class Marked(torch.Tensor):
        """A subclass, which only the eager engine takes."""

    def trained_with(marked: int | None) -> list[Any]:
        params = made_params(torch.float64)
        if marked is not None:
            plain = params[marked].detach()
            params[marked] = plain.as_subclass(Marked).requires_grad_()
        optimizer = EveryScope([{"params": params[:2]}, {"params": params[2:], "lr": 0.03}])
        engines = set()
        for step in range(5):
            give_grads(params, step)
            optimizer.step()
            engines |= {row.engine for row in optimizer.explain().rows}
        assert engines == ({"fused", "none"} if marked is None else {"fused", "eager", "none"})
        return [p.detach().as_subclass(torch.Tensor) for p in params]

    torch.testing.assert_close(trained_with(3), trained_with(None), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_resume_is_as_if_uninterrupted(engine: str) -> None:
    expected, _ = trained(engine)
    params = made_params()
    groups = [{"params": params[:2], "weight_decay": 0.1}, {"params": params[2:], "lr": 0.03}]
    optimizer = EveryScope(groups, engine=engine)
    for step in range(5):
        if step == 2:
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = EveryScope(copy.copy(groups), engine=engine)
            optimizer.load_state_dict(saved)
        give_grads(params, step)
        optimizer.step()
    torch.testing.assert_close(params, expected, rtol=0, atol=0)


def test_explain_names_the_scopes() -> None:
    _, optimizer = trained("fused")
    assert "passes over its elements: mean_of over group; dot_of over all" in str(
        optimizer.explain()
    )


def test_a_step_without_any_gradient_does_nothing() -> None:
    for engine in ENGINES:
        params = made_params()
        before = [p.detach().clone() for p in params]
        EveryScope(params, engine=engine).step()
        torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)


def test_sums_go_through_autograd() -> None:
    scale = torch.tensor(3.0, requires_grad=True)
    params = [torch.ones(2, requires_grad=True) * 1, torch.ones(3, requires_grad=True) * 1]

    @steprule.rule
    def shared_norm(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * grad / norm_of(grad, over="all")

    cls: Any = steprule.make_optimizer(shared_norm, lr=1.0)
    optimizer = cls(params, differentiable=True)
    params[0].grad, params[1].grad = scale * torch.ones(2), torch.full((3,), 2.0)
    optimizer.step()
    (found,) = torch.autograd.grad(params[1][0], scale)
    # d/ds of 1 - 2 / sqrt(2 s^2 + 12)
    assert float(found) == pytest.approx(2 * 2 * 3.0 / (2 * 9 + 12) ** 1.5, rel=1e-5)


def test_what_cannot_be_is_refused_by_name() -> None:
    @steprule.rule
    def by_flag(param: Any, grad: Any, *, lr: Any, scaled: bool) -> Any:
        return param - lr * grad / (norm_of(grad, over="all") if scaled else 1.0)

    cls: Any = steprule.make_optimizer(by_flag, lr=1.0, scaled=True)
    params = made_params()[:2]
    optimizer = cls([{"params": params[:1]}, {"params": params[1:], "scaled": False}])
    for p in params:
        p.grad = torch.ones_like(p)
    before = [p.detach().clone() for p in params]
    with pytest.raises(RuntimeError, match=r"flags give the rule different sums.*dot_of over all"):
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)
    assert not optimizer.state

    with pytest.raises(ValueError, match="over must be one of 'param', 'group', 'all', got 'laye'"):
        norm_of(torch.ones(2), over="laye")  # type: ignore[arg-type]

    @steprule.rule(elementwise=False)
    def of_matrices(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * matrix_ops.mean(grad, -1) / norm_of(grad, over="all")

    optimizer = steprule.make_optimizer(of_matrices, lr=1.0)(params[:1])
    with pytest.raises(TypeError, match="over='all' is for rules on elements"):
        optimizer.step()

    @steprule.rule(sparse="rows")
    def of_rows(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * grad / norm_of(grad, over="all")

    table = torch.ones(4, 2, requires_grad=True)
    table.grad = torch.ones(4, 2).to_sparse()
    optimizer = steprule.make_optimizer(of_rows, lr=1.0)([("table", table)])
    with pytest.raises(RuntimeError, match="sums over several parameters, of which 'table' has"):
        optimizer.step()
