"""Sums, norms and the like in rules: the same on every engine, as the formula on whole tensors."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from helpers import ENGINES
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule
from steprule import ops
from steprule.language.form import form_of
from steprule.ops import all_finite, dot_of, max_of, mean_of, norm_of, sqrt, square, sum_of, where

SHAPES = [(5, 7), (3,), (), (100, 101), (0, 4), (1, 9001)]


@steprule.rule
def lamb(param, grad, exp_avg, exp_avg_sq, *, lr, beta1, beta2, eps, step):  # type: ignore[no-untyped-def]
    """You et al., 2020, without weight decay."""
    exp_avg = beta1 * exp_avg + (1 - beta1) * grad
    exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * square(grad)
    update = exp_avg / (1 - beta1**step) / (sqrt(exp_avg_sq / (1 - beta2**step)) + eps)
    weight_norm, update_norm = norm_of(param), norm_of(update)
    trust = where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
    return param - lr * trust * update, exp_avg, exp_avg_sq


@steprule.rule(largest=steprule.Slot(shape="scalar"), seen=steprule.Slot(shape="scalar"))
def every_kind(param, grad, m, largest, seen, *, lr):  # type: ignore[no-untyped-def]
    """Reductions of reductions, of constants and inputs, in array slots and scalar ones."""
    mean = mean_of(grad)
    spread = sqrt(mean_of(square(grad - mean)))
    scaled = (grad - mean) / (spread + 0.1)
    agreement = dot_of(scaled, param) / (1.0 + norm_of(param) * norm_of(scaled))
    m = 0.5 * m + scaled * where(agreement > 0.1, 0.5, 1.0 - agreement)
    step = m * (grad < mean_of(abs(m))) + sum_of(grad > 0) / (1.0 + sum_of(0.0 * grad + 1.0))
    finite = where(all_finite(grad), 1.0, 0.0)
    return param - lr * step * finite, m, ops.maximum(largest, max_of(grad)), seen + finite


RULES = {
    "lamb": (lamb, {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}),
    "every_kind": (every_kind, {"lr": 0.1}),
}


def trained(name: str, engine: str, dtype: torch.dtype, seed: int = 0) -> tuple[list[Any], Any]:
    rule, options = RULES[name]
    generator = torch.Generator().manual_seed(seed)
    params = [torch.randn(s, generator=generator, dtype=torch.float64) for s in SHAPES]
    params = [p.to(dtype).requires_grad_() for p in params]
    cls: Any = steprule.make_optimizer(rule, **options)
    groups = [{"params": params[:3], "weight_decay": 0.1}, {"params": params[3:], "lr": 0.03}]
    optimizer = cls(groups, engine=engine)
    for step in range(4):
        for i, param in enumerate(params):
            found = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = None if (step + i) % 4 == 3 else found.to(dtype)
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {engine, "none"}
    return params, optimizer


def flat(params: list[Any], optimizer: Any) -> list[torch.Tensor]:
    """Parameters and state in one order, complex ones as pairs."""
    found = [t for p in params for t in (p.detach(), *optimizer.state[p].values())]
    return [torch.view_as_real(t) if t.is_complex() else t for t in found]


# A handful of steps of a dozen roundings; sums are in float64 on all engines.
TOLERANCES = {
    torch.float64: {"rtol": 1e-11, "atol": 1e-12},
    torch.complex128: {"rtol": 1e-11, "atol": 1e-12},
    torch.float32: {"rtol": 2e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-2},
    torch.float16: {"rtol": 5e-3, "atol": 5e-3},
}


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("name", RULES)
def test_engines_agree(name: str, engine: str, dtype: torch.dtype) -> None:
    mine, reference = flat(*trained(name, engine, dtype)), flat(*trained(name, "eager", dtype))
    assert all(t.isfinite().all() for t in reference)
    for one, other in zip(mine, reference, strict=True):
        torch.testing.assert_close(one, other, **TOLERANCES[dtype])


@pytest.mark.parametrize("engine", ENGINES)
def test_lamb_is_the_papers(engine: str) -> None:
    """Each tensor moves by lr times its norm, along Adam's direction."""
    params, _ = [torch.randn(4, 5, dtype=torch.float64).requires_grad_()], None
    cls: Any = steprule.make_optimizer(lamb, lr=0.1, betas=(0.9, 0.99), eps=1e-6)
    optimizer = cls(params, engine=engine)
    m = v = torch.zeros(4, 5, dtype=torch.float64)
    expected = params[0].detach().clone()
    for step in range(1, 6):
        grad = torch.randn(4, 5, dtype=torch.float64)
        params[0].grad = grad
        optimizer.step()
        m, v = 0.9 * m + 0.1 * grad, 0.99 * v + 0.01 * grad**2
        update = m / (1 - 0.9**step) / ((v / (1 - 0.99**step)).sqrt() + 1e-6)
        expected = expected - 0.1 * expected.norm() / update.norm() * update
        torch.testing.assert_close(params[0].detach(), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("engine", ENGINES)
def test_lamb_written_by_a_user_is_the_built_in_one(engine: str) -> None:
    ends = []
    for cls in (steprule.make_optimizer(lamb, lr=0.1, betas=(0.9, 0.99), eps=1e-6), steprule.LAMB):
        generator = torch.Generator().manual_seed(0)
        param = torch.randn(40, 30, generator=generator, dtype=torch.float64).requires_grad_()
        make: Any = cls
        optimizer = make([param], lr=0.1, betas=(0.9, 0.99), eps=1e-6, engine=engine)
        for _ in range(20):
            param.grad = torch.randn(40, 30, generator=generator, dtype=torch.float64)
            optimizer.step()
        ends.append(param.detach())
    # The built-in one adds 0 times the parameter: no rounding differs but by a sum's order.
    torch.testing.assert_close(*ends, rtol=1e-13, atol=1e-15)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), max_size=30),
    st.sampled_from([sum_of, mean_of, max_of, norm_of]),
)
def test_of_tensors_they_are_numbers_in_float64(values: list[float], operation: Any) -> None:
    x = torch.tensor(values, dtype=torch.float32)
    expected = {
        sum_of: math.fsum(values),
        mean_of: math.fsum(values) / max(len(values), 1),
        max_of: max(map(abs, values), default=0.0),
        norm_of: math.sqrt(math.fsum(v * v for v in values)),
    }[operation]
    found = operation(x)
    assert found.dtype is torch.float64
    assert found.dim() == 0
    assert found.item() == pytest.approx(expected, rel=1e-12, abs=1e-9)


def test_what_is_not_finite_is_found() -> None:
    for bad in (math.nan, math.inf, -math.inf):
        assert not all_finite(torch.tensor([1.0, bad]))
        assert not math.isfinite(max_of(torch.tensor([bad, 2.0])).item())
    assert all_finite(torch.tensor([1e38, -3e38]))
    assert all_finite(torch.zeros(0))


@pytest.mark.parametrize("operation", [sum_of, mean_of, max_of, norm_of, lambda x: dot_of(x, 2.0)])
def test_a_reduction_of_a_number_is_refused(operation: Any) -> None:
    def rule(param, grad, *, lr):  # type: ignore[no-untyped-def]
        return param - operation(lr) * grad

    cls: Any = steprule.make_optimizer(steprule.rule(rule), lr=0.1)
    param = torch.ones(2, requires_grad=True)
    param.grad = torch.ones(2)
    for engine in ENGINES:
        with pytest.raises(TypeError, match="is taken of an array"):
            cls([param], engine=engine).step()
    assert param.tolist() == [1.0, 1.0]


def test_the_recording_keeps_apart_what_each_parameter_has_of_its_own() -> None:
    group = {"lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-6}
    recording = form_of(lamb, group).recording()
    assert recording.has_reductions
    of_each = [x.name for x in recording.tensor_operations if not x.result.is_array]
    assert [name for name in of_each if name == "dot_of"] == ["dot_of"] * 2
    assert {"sqrt", "div", "gt", "and", "where"} <= set(of_each)
    assert {x.name for x in recording.scalar_operations} == {"sub", "pow"}


def test_gradients_flow_through_them() -> None:
    cls: Any = steprule.make_optimizer(lamb, lr=0.1, betas=(0.9, 0.99), eps=1e-6)
    start = torch.ones(3, dtype=torch.float64, requires_grad=True)
    param = start.clone()
    optimizer = cls([param], differentiable=True)
    param.grad = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    optimizer.step()
    param.sum().backward()
    assert start.grad is not None
    # d/dp of p - lr |p| u with u of norm 1: 1 - lr (p / |p|) sum(u); u is the same three times.
    assert start.grad.tolist() == pytest.approx([1 - 0.1] * 3, rel=1e-6)


@steprule.rule(total=steprule.Slot(shape="scalar"), norm=steprule.Slot(shape="scalar"))
def measures(param, grad, total, norm, *, lr):  # type: ignore[no-untyped-def]
    return param - lr * (norm_of(param) * grad), sum_of(grad), norm_of(grad)


def measured(grads: list[torch.Tensor], threads: int = 2) -> list[Any]:
    """The states of parameters that were updated once on the CPU's kernels, and themselves."""
    params = [torch.ones_like(grad).requires_grad_() for grad in grads]
    for param, grad in zip(params, grads, strict=True):
        param.grad = grad
    cls: Any = steprule.make_optimizer(measures, lr=0.1)
    optimizer = cls(params, engine="fused")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        optimizer.step()
    finally:
        torch.set_num_threads(before)
    return [(optimizer.state[p]["total"], optimizer.state[p]["norm"], p.detach()) for p in params]


def test_a_sums_bits_are_the_same_for_any_number_of_threads_and_order_of_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = [300_001, 7, 8192, 8193, 65_536, 0]
    grads = [torch.randn(n, generator=generator) for n in sizes]
    alone = [measured([grad])[0] for grad in grads]
    for threads in (1, 2, 3):
        for order in (range(6), [5, 3, 1, 0, 2, 4]):
            found = measured([grads[i] for i in order], threads)
            for i, values in zip(order, found, strict=True):
                assert all(map(torch.equal, values, alone[i]))


@pytest.mark.parametrize("kind", ["alternating", "one huge", "all alike", "random"])
def test_a_sum_is_as_exact_as_is_said(kind: str) -> None:
    """Within (8192 + n / 8192) * 2**-53 of the sum of absolute values."""
    n = 3_000_017
    grad = torch.rand(n, generator=torch.Generator().manual_seed(0))
    if kind == "alternating":
        grad[1::2] = -grad[:-1:2]
        grad[-1] = 1e-3
    elif kind == "one huge":
        grad[n // 3] = 1e30
    elif kind == "all alike":
        grad = torch.full((n,), 0.1)
    ((total, norm, _),) = measured([grad])
    values = grad.tolist()
    bound = (8192 + n / 8192) * 2.0**-53
    # What a slot of float32 holds is rounded to it.
    rounding = 2.0**-24
    exact, size = math.fsum(values), math.fsum(map(abs, values))
    assert abs(total.item() - exact) <= bound * size + rounding * abs(exact)
    squares = math.sqrt(math.fsum(v * v for v in values))
    assert norm.item() == pytest.approx(squares, rel=bound + 2 * rounding)


def test_explain_tells_the_passes() -> None:
    _, optimizer = trained("lamb", "fused", torch.float32)
    assert any("2 passes" in note and "dot_of" in note for note in optimizer.explain().notes)
    _, optimizer = trained("every_kind", "eager", torch.float32)
    (note,) = optimizer.explain().notes
    assert "'every_kind' takes" in note
    assert "update" in str(optimizer.explain())


def test_a_sparse_gradient_is_summed_over_its_rows() -> None:
    cls: Any = steprule.make_optimizer(steprule.rule(sparse="rows")(measures.function), lr=0.1)
    param = torch.full((5, 2), 2.0, requires_grad=True)
    optimizer = cls([param])
    param.grad = torch.sparse_coo_tensor([[1, 3]], torch.ones(2, 2), (5, 2), check_invariants=True)
    optimizer.step()
    expected = torch.full((5, 2), 2.0)
    expected[[1, 3]] -= 0.1 * 4.0  # the norm of the two rows: 4 elements of 2
    torch.testing.assert_close(param.detach(), expected)


def test_resuming_goes_on_bit_for_bit() -> None:
    def run(hand_over: bool) -> torch.Tensor:
        generator = torch.Generator().manual_seed(3)
        param = torch.randn(10_000, generator=generator).requires_grad_()
        cls: Any = steprule.make_optimizer(lamb, lr=0.1, betas=(0.9, 0.99), eps=1e-6)
        optimizer = cls([param])
        for step in range(6):
            param.grad = torch.randn(10_000, generator=generator)
            optimizer.step()
            if hand_over and step == 2:
                saved = optimizer.state_dict()
                optimizer = cls([param])
                optimizer.load_state_dict(saved)
        return param.detach()

    assert torch.equal(run(hand_over=True), run(hand_over=False))


def test_a_capturable_step_is_the_same() -> None:
    def trained_with(**options: Any) -> list[Any]:
        params = [torch.ones(5, 7, requires_grad=True), torch.ones(3, requires_grad=True)]
        cls: Any = steprule.make_optimizer(lamb, lr=0.1, betas=(0.9, 0.99), eps=1e-6)
        optimizer = cls(params, engine="eager", clip_grad_norm=0.5, **options)
        for step in range(5):
            for i, param in enumerate(params):
                param.grad = torch.full_like(param, 0.1 * (step + i + 1))
            optimizer.step()
        return params

    torch.testing.assert_close(trained_with(capturable=True), trained_with(), rtol=1e-6, atol=1e-6)
