"""Guards: clipping within the step as torch's functions before it; steps that change nothing."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from typing import Any

import pytest
import torch
from helpers import (
    HAS_TRITON,
    NATIVE_LOOPS,
    TOLERANCES,
    engines_of,
    rule_optimizers,
    shapes_for,
)
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule
from steprule.language.guards import GUARDS
from steprule.planning.step_record import LastStep
from steprule.rules import OPTIMIZERS

EVERY = [(name, engine) for name in rule_optimizers() for engine in engines_of(name)]
if HAS_TRITON:  # interpreted, so that some must do
    EVERY += [(name, "triton") for name in ("SGD", "Adam", "LAMB")]


def steps_of(engine: str) -> int:
    """Long enough for steps that are native calls, where there are any."""
    return 2 if engine == "triton" else 20


# What the same numbers, rounded at other places, may come to: torch's norm is float32's, and Muon's
# iterations are in bfloat16.
ROUGH = {"rtol": 2e-4, "atol": 2e-4}
# A rounding of 6e-8 turns eigenvectors whose eigenvalues are a thousandth of the largest apart by
# 6e-5, and others of SOAP's bases of 100 dimensions by more; 20 steps of 0.01 are of those.
TURNED = {"rtol": 2e-3, "atol": 2e-3}


def params_for(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes_for(name)]
    return [p.to(dtype).requires_grad_() for p in made]


def give_grads(
    params: list[Any], seed: int, scale: float = 1.0, missing: int | None = None
) -> None:
    generator = torch.Generator().manual_seed(1000 + seed)
    for i, param in enumerate(params):
        found = torch.randn(param.shape, generator=generator, dtype=torch.float64) * scale
        param.grad = None if i == missing else found.to(param.dtype)


def made(name: str, params: Any, **options: Any) -> Any:
    options = {"lr": 0.01, **options}
    return OPTIMIZERS[name.lower()](params, **options)


def snapshot(optimizer: Any, params: list[Any]) -> Any:
    state = copy.deepcopy(optimizer.state_dict())
    return state, [p.detach().clone() for p in params], [p._version for p in params]


def assert_same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one[0]["state"], other[0]["state"], rtol=0, atol=0, equal_nan=True)
    assert one[0]["param_groups"] == other[0]["param_groups"]
    torch.testing.assert_close(one[1], other[1], rtol=0, atol=0)
    assert one[2] == other[2]


@pytest.mark.parametrize(("name", "engine"), EVERY)
def test_a_clipped_step_is_torchs_clip_and_then_a_step(name: str, engine: str) -> None:
    ours, theirs = params_for(name), params_for(name)
    clipped = made(name, ours, clip_grad_norm=1.0, engine=engine)
    plain = made(name, theirs, engine=engine)
    for step in range(steps_of(engine) + 6 * (engine == "triton")):
        scale, missing = (1e-4 if step % 4 == 0 else 1.0), (1 if step == 7 else None)
        give_grads(ours, step, scale, missing)
        give_grads(theirs, step, scale, missing)
        before = [None if p.grad is None else p.grad.clone() for p in ours]
        clipped.step()
        torch.testing.assert_close([p.grad for p in ours], before, rtol=0, atol=0)
        norm = torch.nn.utils.clip_grad_norm_(theirs, 1.0)
        plain.step()
        seen = clipped.last_step
        assert seen.grad_norm == pytest.approx(norm.item(), rel=1e-5)
        assert seen.clip_factor == pytest.approx(min(1.0, 1.0 / (seen.grad_norm + 1e-6)))
    rough = {"Muon": ROUGH, "Rprop": ROUGH, "SOAP": TURNED}
    torch.testing.assert_close(ours, theirs, **rough.get(name, TOLERANCES[torch.float32]))
    asked = {row.engine for row in clipped.explain().rows}
    assert asked <= {engine, "none"}


@settings(deadline=None, max_examples=40)
@given(
    name=st.sampled_from(["SGD", "Adam", "LAMB"]),
    engine=st.sampled_from(["eager", "foreach", "fused"]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.complex64]),
    over=st.sampled_from(["all", "group", "param"]),
    bounds=st.tuples(*[st.sampled_from([0.01, 0.5, 3.0, math.inf])] * 2),
    value=st.sampled_from([None, 0.05]),
    missing=st.sampled_from([None, 0, 3]),
)
def test_random_groups_dtypes_and_missing_gradients(
    name: str,
    engine: str,
    dtype: torch.dtype,
    over: str,
    bounds: tuple[float, float],
    value: float | None,
    missing: int | None,
) -> None:
    if dtype.is_complex and value is not None:
        value = None  # torch clips no complex numbers
    ours, theirs = params_for(name, dtype), params_for(name, dtype)
    groups = [
        {"params": part, "clip_grad_norm": bound}
        for part, bound in zip((ours[:2], ours[2:]), bounds, strict=True)
    ]
    options = {"clip_grad_norm_over": over, "clip_grad_value": value}
    clipped = made(name, groups, engine=engine, **options)
    plain = made(name, theirs, engine=engine)
    for step in range(3):
        give_grads(ours, step, missing=missing)
        give_grads(theirs, step, missing=missing)
        parts = (theirs[:2], theirs[2:])
        # In float64, as ours: a factor that torch rounds to bfloat16 is another one.
        exact = [[p.grad.abs().double() for p in part if p.grad is not None] for part in parts]
        norms = [math.sqrt(sum(float(g.square().sum()) for g in part)) for part in exact]
        for part, bound, own in zip(parts, bounds, norms, strict=True):
            for p in part:
                if p.grad is None:
                    continue
                norm = {"all": math.hypot(*norms), "group": own}.get(
                    over, float(p.grad.abs().double().square().sum().sqrt())
                )
                grad = p.grad.to(torch.complex128 if dtype.is_complex else torch.float64)
                grad = grad * min(1.0, bound / (norm + 1e-6))
                p.grad = (grad if value is None else grad.clamp(-value, value)).to(dtype)
        clipped.step()
        plain.step()
    torch.testing.assert_close(ours, theirs, **TOLERANCES[dtype])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("name", "engine"), EVERY)
def test_a_skipped_step_leaves_every_bit(name: str, engine: str, bad: float) -> None:
    params = params_for(name)
    rate = steprule.schedules.linear(0.01, 0.0, steps=100)
    optimizer = made(name, params, lr=rate, on_nonfinite="skip", engine=engine)
    give_grads(params, 0)
    params[-1].grad[-1] = bad
    before = snapshot(optimizer, params)
    optimizer.step()  # the very first one: no state may appear
    assert_same(snapshot(optimizer, params), before)
    assert optimizer.last_step.skipped
    steps = steps_of(engine)
    for step in range(steps):
        give_grads(params, step)
        optimizer.step()
        assert not optimizer.last_step.skipped
    before = snapshot(optimizer, params)
    params[0].grad[0] = bad
    optimizer.step()
    assert_same(snapshot(optimizer, params), before)
    assert optimizer.last_step.skipped
    assert optimizer.last_step.skipped_so_far == 2
    # As if it had never been.
    twins = params_for(name)
    twin = made(name, twins, lr=rate, engine=engine)
    for step in (*range(steps), 21):
        give_grads(twins, step)
        twin.step()
    give_grads(params, 21)
    optimizer.step()
    torch.testing.assert_close(params, twins, rtol=0, atol=0)
    assert optimizer.param_groups[0]["lr"] == twin.param_groups[0]["lr"]


@pytest.mark.parametrize(("name", "engine"), EVERY)
def test_raise_names_the_parameters_and_changes_nothing(name: str, engine: str) -> None:
    params = params_for(name)
    named = [(f"layer{i}.weight", p) for i, p in enumerate(params)]
    optimizer = made(name, named, on_nonfinite="raise", clip_grad_norm=1.0, engine=engine)
    for step in range(20):
        give_grads(params, step)
        optimizer.step()
    before = snapshot(optimizer, params)
    params[0].grad.view(-1)[:2] = torch.tensor([math.nan, math.inf])
    with pytest.raises(
        RuntimeError, match=r"'layer0.weight' \(1 nan, 1 infinite of 35\)\. Nothing"
    ):
        optimizer.step()
    assert_same(snapshot(optimizer, params), before)
    give_grads(params, 5)
    optimizer.step()


def test_large_finite_gradients_in_float64_are_finite() -> None:
    param = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for engine in ("eager", "fused"):
        optimizer = steprule.SGD([param], lr=0.0, on_nonfinite="raise", engine=engine)
        param.grad = torch.full_like(param, 1e200)  # whose square is infinite
        optimizer.step()
        assert not optimizer.last_step.skipped


def test_neither_order_nor_threads_change_a_bit() -> None:
    found = set()
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for order in ((0, 1, 2, 3), (3, 1, 0, 2)):
                shapes = [(300, 1000), (7,), (64, 64), (100_000,)]
                generator = torch.Generator().manual_seed(0)
                params = [torch.zeros(s, requires_grad=True) for s in shapes]
                for p in params:
                    p.grad = torch.randn(p.shape, generator=generator)
                optimizer = steprule.SGD([params[i] for i in order], lr=1.0, clip_grad_norm=1.0)
                optimizer.step()
                assert {row.engine for row in optimizer.explain().rows} == {"fused"}
                found.add((optimizer.last_step.grad_norm, float(params[3].detach()[5])))
    finally:
        torch.set_num_threads(before)
    assert len(found) == 1


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_live_entries_and_schedules(engine: str) -> None:
    def clipped_by(optimizer: Any, param: Any) -> float:
        param.grad = torch.full((4,), 2.0)  # norm 4
        before = param.detach().clone()
        optimizer.step()
        return float((before - param.detach()).norm())

    bound = steprule.schedules.linear(2.0, 1.0, steps=2)
    param = torch.zeros(4, requires_grad=True)
    optimizer = steprule.SGD([param], lr=1.0, clip_grad_norm=bound, engine=engine)
    assert clipped_by(optimizer, param) == pytest.approx(2.0, rel=1e-5)
    assert clipped_by(optimizer, param) == pytest.approx(1.5, rel=1e-5)
    assert clipped_by(optimizer, param) == pytest.approx(1.0, rel=1e-5)
    other = steprule.SGD([param], lr=1.0, engine=engine)
    for _ in range(20):
        assert clipped_by(other, param) == pytest.approx(4.0)
    assert other.last_step == LastStep()
    group = other.param_groups[0]
    group["clip_grad_norm"] = 3.0
    assert clipped_by(other, param) == pytest.approx(3.0, rel=1e-5)
    for bound in (1.0, 0.5, 1):
        group["clip_grad_norm"] = bound
        for _ in range(3):
            assert clipped_by(other, param) == pytest.approx(bound, rel=1e-5)
    group["clip_grad_norm"] = None
    group["clip_grad_value"] = 0.25
    assert clipped_by(other, param) == pytest.approx(0.5)
    group["on_nonfinite"] = "skp"
    with pytest.raises(
        ValueError, match="group 0: on_nonfinite must be one of 'propagate', 'skip'"
    ):
        other.step()
    group["on_nonfinite"] = "skip"
    for _ in range(20):
        assert clipped_by(other, param) == pytest.approx(0.5)
    param.grad = torch.full((4,), math.nan)
    other.step()
    assert other.last_step.skipped


def test_bounds_of_groups() -> None:
    first, second = torch.zeros(4, requires_grad=True), torch.zeros(9, requires_grad=True)
    groups = [
        {"params": [first], "clip_grad_norm": 1.0},
        {"params": [second], "clip_grad_norm": None},
    ]
    optimizer = steprule.SGD(groups, lr=1.0)
    first.grad, second.grad = torch.full((4,), 1.0), torch.full((9,), 2.0)
    optimizer.step()
    seen = optimizer.last_step
    # A group without a bound is not clipped, and takes no part in the norm.
    assert float(first.detach().norm()) == pytest.approx(1.0, rel=1e-5)
    assert float(second.detach().norm()) == pytest.approx(6.0)
    assert seen.group_norms == (2.0, 6.0)
    assert seen.grad_norm == pytest.approx(math.hypot(2, 6))
    assert seen.group_clip_factors == (pytest.approx(0.5), None)
    # inf only measures.
    optimizer.param_groups[1]["clip_grad_norm"] = math.inf
    optimizer.step()
    assert optimizer.last_step.group_clip_factors[1] == 1.0
    assert optimizer.last_step.clip_factor == pytest.approx(1 / math.hypot(2, 6))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"clip_grad_norm": 0.0}, ValueError, "clip_grad_norm must be a number > 0, got 0.0: None"),
        ({"clip_grad_norm": math.nan}, ValueError, "clip_grad_norm must be a number > 0, got nan"),
        ({"clip_grad_value": -1}, ValueError, "clip_grad_value must be a number > 0, got -1"),
        ({"clip_grad_norm": "1"}, TypeError, "clip_grad_norm must be a number.*str '1'"),
        ({"clip_grad_norm": True}, TypeError, "clip_grad_norm must be a number"),
        ({"on_nonfinite": "stop"}, ValueError, "'propagate', 'skip', 'raise', got 'stop'"),
        ({"clip_grad_norm_over": "layer"}, ValueError, "'all', 'group', 'param', got 'layer'"),
        ({"on_nonfinite": steprule.schedules.constant(1.0)}, Exception, "on_nonfinite"),
        ({"clip_grad": 1.0}, TypeError, "unexpected keyword argument 'clip_grad'.*mean"),
    ],
)
def test_what_is_no_guard_is_refused(options: Any, error: Any, message: str) -> None:
    for cls in (steprule.Adam, steprule.LAMB):
        with pytest.raises(error, match=message):
            cls([torch.ones(2, requires_grad=True)], **options)


def test_guards_in_a_group_only_where_used_and_saved_with_it() -> None:
    param = torch.ones(2, requires_grad=True)
    plain = steprule.AdamW([param])
    assert not set(GUARDS) & set(plain.param_groups[0])
    bound = steprule.schedules.linear(2.0, 1.0, steps=10)
    optimizer = steprule.AdamW([param], clip_grad_norm=bound, on_nonfinite="skip")
    assert optimizer.param_groups[0]["clip_grad_norm"] == 2.0
    for _ in range(3):
        param.grad = torch.ones(2)
        optimizer.step()
    other = steprule.AdamW([param], clip_grad_norm=5.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.param_groups[0]["clip_grad_norm"] == pytest.approx(1.7)
    assert other.param_groups[0]["on_nonfinite"] == "skip"
    # torch's own state dicts know of no guards: ours stay.
    theirs = torch.optim.AdamW([param])
    other.load_state_dict(theirs.state_dict())
    assert other.param_groups[0]["on_nonfinite"] == "skip"


def test_users_rules_have_guards_too_unless_the_rule_has_one_of_that_name() -> None:
    @steprule.rule
    def descent(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * grad

    @steprule.rule
    def own(param: Any, grad: Any, *, lr: Any, clip_grad_value: Any) -> Any:
        return param - lr * grad * clip_grad_value

    for engine in ("eager", "foreach", "fused"):
        param = torch.zeros(4, requires_grad=True)
        param.grad = torch.full((4,), 2.0)
        steprule.make_optimizer(descent, lr=1.0)([param], clip_grad_norm=2.0, engine=engine).step()
        assert float(param.detach().norm()) == pytest.approx(2.0, rel=1e-5)
        doubled: Any = steprule.make_optimizer(own, lr=1.0, clip_grad_value=2.0)
        doubled([param], engine=engine).step()
        assert float(param.detach()[0]) == pytest.approx(-5.0, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
def test_sparse_gradients_are_clipped_by_the_sum_of_their_entries() -> None:
    def table() -> Any:
        param = torch.zeros(6, 2, requires_grad=True)
        where, entries = torch.tensor([[1, 1, 4]]), torch.ones(3, 2)
        param.grad = torch.sparse_coo_tensor(where, entries, (6, 2))
        return param

    dense, sparse = table(), table()
    dense.grad = dense.grad.to_dense()
    for param in (dense, sparse):
        optimizer = steprule.SGD([param], lr=1.0, clip_grad_norm=1.0, on_nonfinite="skip")
        optimizer.step()
        assert optimizer.last_step.grad_norm == pytest.approx(math.sqrt(10))
    torch.testing.assert_close(dense, sparse)
    sparse.grad = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.full((1, 2), math.nan), (6, 2))
    optimizer.step()
    assert optimizer.last_step.skipped
    assert bool(torch.isfinite(sparse).all())


def test_clipping_lets_autograd_through() -> None:
    param = torch.ones(3, requires_grad=True)
    scale = torch.tensor(2.0, requires_grad=True)
    start = param * 1
    start.grad = None
    optimizer = steprule.SGD([start], lr=1.0, clip_grad_norm=1.0, differentiable=True)
    start.grad = scale * torch.tensor([3.0, 4.0, 0.0])
    optimizer.step()
    (found,) = torch.autograd.grad(start[0], scale)
    # A clipped gradient keeps its length, whatever the scale.
    assert abs(float(found)) < 1e-5
    assert optimizer.last_step.grad_norm == pytest.approx(10.0)


@pytest.mark.parametrize("engine", ["eager", "foreach"])
def test_on_the_meta_device_nothing_is_waited_for(engine: str) -> None:
    param = torch.ones(3, device="meta", requires_grad=True)
    param.grad = torch.ones(3, device="meta")
    optimizer = steprule.Adam([param], clip_grad_norm=1.0, on_nonfinite="skip", engine=engine)
    optimizer.step()
    assert param.shape == (3,)


@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_step_that_a_grad_scaler_skips_leaves_schedules_where_they_were(
    clip: float | None,
) -> None:
    param = torch.ones(3, requires_grad=True)
    rate = steprule.schedules.linear(0.1, 0.0, steps=10)
    optimizer = steprule.SGD([param], lr=rate, clip_grad_norm=clip)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)  # type: ignore[attr-defined]
    rates = []
    for loss_scale in (1.0, math.inf, 1.0):
        optimizer.zero_grad()
        scaler.scale((param * 3.0 * loss_scale).sum()).backward()
        before = param.detach().clone()
        scaler.step(optimizer)
        scaler.update()
        rates.append(optimizer.param_groups[0]["lr"])
        moved = float((before - param.detach()).norm())
        if math.isinf(loss_scale):
            assert moved == 0.0
        elif clip is not None:
            assert moved == pytest.approx(0.1 if len(rates) == 1 else 0.09, rel=1e-4)
    assert rates == [pytest.approx(0.09), pytest.approx(0.09), pytest.approx(0.08)]


def test_a_closure_runs_and_its_loss_comes_back_from_a_skipped_step() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.SGD([param], lr=0.1, on_nonfinite="skip")

    def closure() -> Any:
        optimizer.zero_grad()
        loss = (param * math.inf).sum()
        loss.backward()
        return loss

    assert math.isinf(float(optimizer.step(closure).detach()))
    assert optimizer.last_step.skipped


def test_guards_keep_nothing_alive() -> None:
    param = torch.ones(1000, requires_grad=True)
    optimizer = steprule.Adam([param], clip_grad_norm=1.0, on_nonfinite="skip")
    for _ in range(20):
        param.grad = torch.ones(1000)
        seen = weakref.ref(param.grad)
        optimizer.step()
        param.grad = None
        assert seen() is None
    gone = weakref.ref(param)
    gc.disable()
    try:
        del param, optimizer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.skipif(not NATIVE_LOOPS, reason="native loops are off")
@pytest.mark.parametrize("name", ["Adam", "LAMB", "Adafactor"])
def test_guarded_steps_are_native_calls_with_the_same_bits(name: str) -> None:
    def trained() -> tuple[list[Any], Any]:
        params = [torch.ones(10, 10, requires_grad=True) for _ in range(30)]
        optimizer = made(name, params, lr=0.1, clip_grad_norm=0.5)
        for step in range(40):
            give_grads(params, step)
            optimizer.step()
        return params, optimizer

    ours, optimizer = trained()
    assert optimizer._plan._whole.is_ready()
    steprule.set_native_loops(False)
    try:
        theirs, other = trained()
    finally:
        steprule.set_native_loops(True)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert optimizer.last_step == other.last_step


def test_a_skipped_step_holds_no_gradient_whatever_its_engines() -> None:
    dense = torch.ones(4, requires_grad=True)
    table = torch.ones(4, 2, requires_grad=True)
    optimizer = steprule.SGD([dense, table], lr=0.1, on_nonfinite="skip")
    for step in range(20):
        dense.grad = torch.full((4,), math.nan if step == 19 else 1.0)
        where = torch.tensor([[1]])
        table.grad = torch.sparse_coo_tensor(where, torch.ones(1, 2), (4, 2), check_invariants=True)
        optimizer.step()
    assert optimizer.last_step.skipped
    gone = [weakref.ref(dense.grad), weakref.ref(table.grad)]
    dense.grad = table.grad = None
    assert [ref() for ref in gone] == [None, None]


@pytest.mark.parametrize(
    "options", [{}, {"engine": "eager"}, {"engine": "foreach"}, {"differentiable": True}]
)
def test_without_any_gradient_the_norm_is_0(options: dict[str, Any]) -> None:
    param = torch.ones(4, requires_grad=True)
    optimizer = steprule.SGD([param], lr=0.1, clip_grad_norm=1.0, **options)
    param.grad = torch.ones(4)
    with torch.no_grad():
        optimizer.explain()
    param.grad = None
    optimizer.step()
    assert optimizer.last_step.grad_norm == 0.0
