"""Engines agree with eager, fall back where they must, and touch no memory but their own."""

from __future__ import annotations

import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

import pytest
import torch
from helpers import (
    TOLERANCES,
    Case,
    assert_equal_runs,
    elementwise_optimizers,
    flag_cases,
    gradients,
    make_params,
    needs_native_loops,
    needs_torch,
    params_of,
    rule_optimizers,
    run,
)
from torch import nn

import steprule
from steprule.engines.cpu.runner import GRAIN
from steprule.engines.kernels.address_runner import CHUNK
from steprule.rules import OPTIMIZERS

NAMES = elementwise_optimizers()
FLAGS = list(chain.from_iterable(flag_cases(name) for name in NAMES))


@pytest.mark.parametrize("engine", ["foreach", "fused"])
@pytest.mark.parametrize("case", FLAGS, ids=lambda c: f"{c.name}-{','.join(c.options)}")
def test_every_flag_agrees_with_eager(case: Case, engine: str) -> None:
    reference = run(case.ours, case, engine="eager", steps=10)
    assert_equal_runs(run(case.ours, case, engine=engine, steps=10), reference, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("engine", ["foreach", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_agrees_with_eager(name: str, engine: str, dtype: torch.dtype) -> None:
    case = Case(name, {})
    reference = run(case.ours, case, dtype, engine="eager", steps=10)
    assert_equal_runs(run(case.ours, case, dtype, engine=engine, steps=10), reference, dtype)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_float16_parameters_stay_finite(name: str, engine: str) -> None:
    """Zero and tiny gradients, where eps underflows in float16 and torch's loop makes nan."""
    params = [torch.ones(64, dtype=torch.float16, requires_grad=True) for _ in range(2)]
    optimizer = OPTIMIZERS[name.lower()](params, engine=engine)
    for _ in range(5):
        params[0].grad = torch.zeros_like(params[0])
        params[1].grad = torch.full_like(params[1], 6e-8)
        optimizer.step()
    if name == "Adamax":  # 0 / (0 + eps): eps is a state there, and 1e-8 rounds to 0 in float16
        params = params[1:]
    assert all(torch.isfinite(p).all() for p in params)


def conforming(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3))


def non_contiguous() -> torch.Tensor:
    return conforming((8, 12))[::2, ::3]


def permuted() -> torch.Tensor:
    return conforming((2, 3, 8, 5)).to(memory_format=torch.channels_last)


def transposed() -> torch.Tensor:
    return conforming((9, 14)).t()


def unaligned() -> torch.Tensor:
    buffer = bytearray(4 * 40 + 1)
    view = torch.frombuffer(buffer, dtype=torch.float32, offset=1, count=40)
    return view.copy_(conforming((40,)))


def scalar() -> torch.Tensor:
    return torch.tensor(1.5)


def empty() -> torch.Tensor:
    return torch.empty(0, 3)


ODD = [non_contiguous, permuted, transposed, unaligned, scalar, empty]


@pytest.mark.parametrize("make", ODD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", ["SGD", "Adam", "NAdam"])
def test_odd_tensors(name: str, make: Any) -> None:
    """Strides, alignment and sizes of every kind give what eager gives on a plain copy."""
    odd = make().requires_grad_()
    plain = odd.detach().clone(memory_format=torch.contiguous_format).requires_grad_()
    optimizer = OPTIMIZERS[name.lower()]([odd], lr=0.1)
    reference = OPTIMIZERS[name.lower()]([plain], lr=0.1, engine="eager")
    for _ in gradients([plain], 5):
        odd.grad = torch.empty_like(odd).copy_(plain.grad)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(odd, plain, rtol=1e-6, atol=1e-6)
    assert int(optimizer.state[odd].get("step", 5)) == 5


@pytest.mark.parametrize(
    "make_grad",
    [
        lambda p: torch.tensor(0.5).expand(p.shape),
        lambda p: torch.randn(p.shape[::-1]).t(),
        lambda p: torch.randn(2 * p.shape[0], p.shape[1])[::2],
        lambda p: torch.nn.Parameter(torch.randn(p.shape)),
    ],
    ids=["expanded", "transposed", "strided", "a Parameter"],
)
def test_odd_gradients(make_grad: Any) -> None:
    torch.manual_seed(0)
    param = torch.randn(6, 4, requires_grad=True)
    twin = param.detach().clone().requires_grad_()
    param.grad = make_grad(param)
    twin.grad = param.grad.detach().clone(memory_format=torch.contiguous_format)
    optimizer = steprule.Adam([param])
    optimizer.step()
    steprule.Adam([twin], engine="eager").step()
    torch.testing.assert_close(param, twin)
    assert optimizer.explain().rows[0].engine == "fused"


def test_conjugate_gradients() -> None:
    """Autograd hands out lazily conjugated gradients: their memory holds the wrong sign."""
    for size in ((5,), ()):
        param = torch.randn(size, dtype=torch.complex64, requires_grad=True)
        twin = param.detach().clone().requires_grad_()
        grad = torch.randn(size, dtype=torch.complex64)
        param.grad, twin.grad = grad.conj(), grad.conj().resolve_conj()
        assert param.grad.is_conj()
        steprule.Adam([param]).step()
        steprule.Adam([twin], engine="eager").step()
        torch.testing.assert_close(param, twin)


def test_neighbours_in_one_buffer_are_untouched() -> None:
    buffer = torch.full((100,), 7.0)
    params = [buffer[10:20], buffer[30:31], buffer[50:90]]
    for param in params:
        param.requires_grad_()
        param.grad = torch.ones_like(param)
    optimizer = steprule.Adam(params)
    optimizer.step()
    outside = torch.ones(100, dtype=torch.bool)
    for start, stop in ((10, 20), (30, 31), (50, 90)):
        outside[start:stop] = False
    assert (buffer[outside] == 7.0).all()
    assert (buffer[~outside] != 7.0).all()
    assert {row.engine for row in optimizer.explain().rows} == {"fused"}


def test_overlapping_parameters_do_not_race() -> None:
    buffer = torch.zeros(60)
    params = [buffer[:40].requires_grad_(), buffer[20:].requires_grad_()]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = steprule.SGD(params, lr=1.0)
    optimizer.step()
    expected = torch.full((60,), -1.0)
    expected[20:40] = -2.0
    torch.testing.assert_close(buffer, expected)
    assert [row.engine for row in optimizer.explain().rows] == ["eager", "eager"]
    assert "shares memory" in optimizer.explain().rows[0].reason


def test_three_thousand_tiny_tensors() -> None:
    params = [torch.full((3,), float(i), requires_grad=True) for i in range(3000)]
    twins = [p.detach().clone().requires_grad_() for p in params]
    optimizer, reference = steprule.Adam(params), torch.optim.Adam(twins, foreach=True)
    for _ in gradients(params, 3):
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad
        optimizer.step()
        reference.step()
    torch.testing.assert_close(params, twins, **TOLERANCES[torch.float32])


SIZES = {
    "large": [700_001, 300_003, 7],
    # Just below, at and above where another thread joins in, and a chunk's end.
    "threshold": [GRAIN - CHUNK, CHUNK - 1, 1, 1, GRAIN + CHUNK + 1],
    "many": [GRAIN // 200 + i % 3 for i in range(700)],
}


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_threads_give_the_same_bits(name: str, sizes: str) -> None:
    """Large enough for several threads; the result does not depend on how many, nor does state."""
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            params = [torch.randn(n, generator=generator).requires_grad_() for n in SIZES[sizes]]
            optimizer = OPTIMIZERS[name.lower()](params)
            for _ in gradients(params, 2):
                params[0].grad[::3] *= 1e-30  # squares of these are flushed, on every thread
                optimizer.step()
            state = optimizer.state_dict()["state"].values()
            slots = [value for entry in state for value in entry.values()]
            results.append([p.detach() for p in params] + slots)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_several_python_threads_at_once() -> None:
    """Optimizers of their own on threads of their own share the worker pool without harm."""
    outcomes: list[Any] = [None] * 4

    def train(i: int) -> None:
        outcomes[i] = run(steprule.Adam, Case("Adam", {}), steps=30)[0]

    threads = [threading.Thread(target=train, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for other in outcomes[1:]:
        assert all(map(torch.equal, outcomes[0], other))


class Subclass(torch.Tensor):
    """A tensor subclass: not to be touched by address."""


def test_what_the_kernel_cannot_take_goes_elsewhere_and_says_why() -> None:
    plain = torch.randn(4, requires_grad=True)
    strided = torch.randn(8)[::2].requires_grad_()
    subclass = torch.randn(4).as_subclass(Subclass).requires_grad_()
    integers_apart = torch.randn(4, dtype=torch.float64, requires_grad=True)
    params = [plain, strided, subclass, integers_apart]
    for param in params:
        param.grad = torch.ones_like(param)
    twins = [p.detach().clone().as_subclass(torch.Tensor).requires_grad_() for p in params]
    for twin in twins:
        twin.grad = torch.ones_like(twin)
    optimizer = steprule.Adam(params)
    optimizer.step()
    torch.optim.Adam(twins).step()
    for param, twin in zip(params, twins, strict=True):
        torch.testing.assert_close(param.as_subclass(torch.Tensor), twin)
    rows = optimizer.explain().rows
    assert [row.engine for row in rows] == ["fused", "foreach", "eager", "fused"]
    assert "gaps" in rows[1].reason
    assert "subclass" in rows[2].reason
    text = str(optimizer.explain())
    assert "engine" in text.splitlines()[0]
    assert "parameter 1 of group 0" in text


def test_meta_parameters_step_without_memory() -> None:
    param = torch.empty(4, 4, device="meta", requires_grad=True)
    param.grad = torch.empty_like(param)
    optimizer = steprule.Adam([param])
    optimizer.step()
    assert optimizer.explain().rows[0].engine == "foreach"
    assert optimizer.state[param]["exp_avg"].is_meta


def test_saved_parameter_complains_after_a_step() -> None:
    """The kernel writes behind autograd's back, so the version counter must be bumped."""
    param = torch.randn(4, requires_grad=True)
    loss = (param * param).sum()
    param.grad = torch.ones_like(param)
    optimizer = steprule.SGD([param], lr=0.1)
    optimizer.step()
    assert optimizer.explain().rows[0].engine == "fused"
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_the_callers_denormal_mode_is_left_alone() -> None:
    tiny = torch.tensor([1e-40])
    param = torch.randn(10, requires_grad=True)
    param.grad = torch.ones_like(param)
    steprule.Adam([param]).step()
    assert (tiny * 1.0).item() != 0.0


def test_denormal_state_is_flushed() -> None:
    """exp_avg decays through the denormals to 0 instead of staying there for ever."""
    param = torch.randn(10_000, requires_grad=True)
    optimizer = steprule.Adam([param])
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.grad = torch.zeros_like(param)
    for _ in range(1000):
        optimizer.step()
    assert (optimizer.state[param]["exp_avg"] == 0).all()


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_left_as_they_were(name: str, engine: str) -> None:
    params = make_params(name)
    optimizer = OPTIMIZERS[name.lower()](params, engine=engine)
    for _ in gradients(params, 2):
        before = [p.grad.clone() for p in params]
        optimizer.step()
        assert all(torch.equal(p.grad, b) for p, b in zip(params, before, strict=True))


@pytest.mark.parametrize(("case", "engine"), list(chain.from_iterable(map(params_of, NAMES))))
def test_tensor_lr_counts_as_its_number(case: Case, engine: str) -> None:
    lr = torch.tensor(0.01)
    params, twins = make_params(case.name), make_params(case.name)
    optimizer = case.ours(params, lr=lr, engine=engine)
    reference = case.ours(twins, lr=0.01, engine=engine)
    for i, _ in enumerate(gradients(params, 6)):
        for param, twin in zip(params, twins, strict=True):
            twin.grad = param.grad
        if i == 3:
            lr.fill_(0.002)
            reference.param_groups[0]["lr"] = float(lr)
        optimizer.step()
        reference.step()
    torch.testing.assert_close(params, twins, rtol=1e-6, atol=1e-7)


def test_betas_as_tensors() -> None:
    case = Case("Adam", {"betas": (torch.tensor(0.8), torch.tensor(0.99))})
    plain = Case("Adam", {"betas": (float(torch.tensor(0.8)), float(torch.tensor(0.99)))})
    torch.testing.assert_close(run(case.ours, case)[0], run(plain.ours, plain)[0])


@pytest.mark.parametrize("name", NAMES)
def test_capturable_keeps_the_numbers(name: str) -> None:
    """Step counts and learning rate stay tensors, read without a round trip to Python."""
    cls = OPTIMIZERS[name.lower()]
    case = Case(name, {})
    if "capturable" not in cls(make_params(name)).defaults:
        with pytest.raises(TypeError, match="capturable"):
            cls(make_params(name), capturable=True)
        return
    reference = run(cls, case, steps=10)
    mine = run(cls, case, steps=10, capturable=True, lr=torch.tensor(reference[1].defaults["lr"]))
    assert {row.engine for row in mine[1].explain().rows} == {"eager"}
    torch.testing.assert_close(mine[0], reference[0], **TOLERANCES[torch.float32])


def test_all_threads_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch's own parallel loop, its OpenMP runtime, and ours (elsewhere, and when forked)."""
    from steprule.engines.native import whole_step
    from steprule.engines.threads import work_split
    from steprule.engines.threads.openmp_team import openmp_team
    from steprule.engines.threads.torch_team import torch_team

    results = []
    for team in (torch_team(), openmp_team(), None):
        for module in (work_split, whole_step):
            monkeypatch.setattr(module, "team", lambda team=team: team)
        generator = torch.Generator().manual_seed(0)
        param = torch.randn(500_001, generator=generator).requires_grad_()
        optimizer = steprule.Adam([param])
        for _ in gradients([param], 5):
            optimizer.step()
        results.append(param.detach())
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads of ours do the work")
def test_torchs_own_threads_are_found() -> None:
    from steprule.engines.threads.team import team

    assert team() is not None


def test_native_loops_are_in_use() -> None:
    """A new torch may keep sizes elsewhere: steps are then right, but slower than they need be."""
    from steprule.engines.native.loops import is_native_enabled

    needs_native_loops()
    assert is_native_enabled()


def test_native_loops_come_into_use_once_a_run_is_going_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A script of a few steps does not wait for their compilation."""
    needs_native_loops()
    monkeypatch.setattr("steprule.engines.native.loops._is_enabled", False)
    monkeypatch.setattr("steprule.engines.native.loops._are_compiled", lambda: False)
    params, results = [nn.Parameter(torch.ones(3)) for _ in range(60)], []
    optimizer, twin = steprule.Adam(params), nn.Parameter(torch.ones(3))
    reference = torch.optim.Adam([twin])
    for step in range(40):
        for param in (*params, twin):
            param.grad = torch.full((3,), 0.1 * step)
        optimizer.step()
        reference.step()
        results.append(optimizer._plan._runners[0]._native_guard is not None)
    assert not any(results[:16])
    assert all(results[20:])
    for param in params:
        torch.testing.assert_close(param, twin)


def test_plain_calls_see_what_the_native_loops_see(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a torch that lacks its compiler's helpers the checks are the same, only slower."""
    reference = run(steprule.Adam, Case("Adam", {}), steps=4)
    for user in ("kernels.address_runner", "native.loops"):
        monkeypatch.setattr(f"steprule.engines.{user}.is_native_enabled", lambda: False)
    monkeypatch.setattr("steprule.engines.guards.tensors.guards", None)
    params, optimizer = run(steprule.Adam, Case("Adam", {}), steps=4)
    assert all(map(torch.equal, params, reference[0]))
    optimizer.state[params[0]]["exp_avg"] = torch.zeros_like(params[0])
    assert not optimizer._plan.collect()


RESHAPES = {
    "shrunk": (30, lambda t: t[:5]),
    "grown": (5, lambda t: t.as_strided((20,), (1,))),
    "of other axes": (30, lambda t: t.view(5, 6)),
}


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("kind", RESHAPES)
def test_a_parameter_reshaped_in_place_is_seen(
    monkeypatch: pytest.MonkeyPatch, kind: str, native: bool
) -> None:
    """The address stays: only sizes and strides tell."""
    if not native:
        monkeypatch.setattr(
            "steprule.engines.kernels.address_runner.is_native_enabled", lambda: False
        )
    size, reshape = RESHAPES[kind]
    whole = torch.ones(40)
    param = nn.Parameter(whole[:size])
    plain, adam = steprule.SGD([param], lr=0.1), steprule.Adam([param], lr=0.1)
    param.grad = torch.ones(size)
    plain.step()
    adam.step()
    param.grad, param.data = None, reshape(param.data)
    param.grad = torch.ones_like(param)
    before = whole.clone()
    with pytest.raises(RuntimeError, match="'exp_avg' of parameter 0 of group 0 has shape"):
        adam.step()
    assert torch.equal(whole, before)
    plain.step()
    touched = param.numel()
    torch.testing.assert_close(whole[:touched], before[:touched] - 0.1)
    assert torch.equal(whole[touched:], before[touched:])


def test_a_parameter_transposed_in_place_keeps_its_state_by_index() -> None:
    generator = torch.Generator().manual_seed(0)
    start, grads = torch.randn(4, 4, generator=generator), torch.randn(3, 4, 4, generator=generator)
    results = []
    for cls in (steprule.Adam, torch.optim.Adam):
        param = nn.Parameter(start.clone())
        optimizer = cls([param], lr=0.1)
        for i, grad in enumerate(grads):
            if i == 1:
                param.data = param.data.t()
            param.grad = grad.t() if i else grad.clone()
            optimizer.step()
        results.append(param.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("axes", [0, 1, 5, 6, 8])
def test_sizes_of_tensors_of_many_axes_are_watched(axes: int) -> None:
    param = nn.Parameter(torch.ones([2] * axes))
    optimizer = steprule.SGD([param], lr=0.1, momentum=0.9)
    param.grad = torch.ones_like(param)
    for _ in range(2):
        optimizer.step()
    assert optimizer._plan is not None
    assert optimizer._plan.collect()
    if axes:
        optimizer.state[param]["momentum_buffer"].resize_(1)
        assert not optimizer._plan.collect()


def test_a_count_without_an_element_is_refused() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.Adam([("w", param)])
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[param]["step"] = torch.zeros(0)
    with pytest.raises(RuntimeError, match="'step' of 'w' has shape"):
        optimizer.step()


def test_a_count_of_whole_numbers_is_taken() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.Adam([param])
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.state[param]["step"] = torch.tensor(5)
    optimizer.step()
    assert optimizer.state[param]["step"] == 6


def test_a_gradient_of_another_dtype_is_read_in_its_own() -> None:
    needs_torch("2.10", "a gradient has its parameter's dtype")
    param = nn.Parameter(torch.zeros(1))
    param.grad_dtype = None
    optimizer = steprule.SGD([param], lr=1.0)
    param.grad = torch.ones(1, dtype=torch.bfloat16)
    optimizer.step()
    param.grad = torch.full((1,), 1.001)
    optimizer.step()
    assert param.item() == pytest.approx(-2.001, abs=1e-6)


def test_a_zero_tensor_without_memory_is_a_gradient() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.SGD([param], lr=0.1)
    param.grad = torch._efficientzerotensor(3)
    optimizer.step()
    assert torch.equal(param, torch.ones(3))


@pytest.mark.parametrize("engine", ["eager", "foreach"])
def test_no_gradient_outlives_zero_grad(engine: str) -> None:
    """What is kept from step to step must not keep a model's gradients in memory."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = steprule.Adam(params, engine=engine)
    for _ in gradients(params, 4):
        optimizer.step()
        seen = [weakref.ref(param.grad) for param in params if param.grad is not None]
        optimizer.zero_grad()
        assert len(seen) == 3
        assert all(ref() is None for ref in seen)


@pytest.mark.parametrize("engine", ["eager", "foreach"])
def test_what_is_gathered_once_is_seen_to_change(engine: str) -> None:
    """Gradients go, come back, change their dtype; state is cleared; on one of two engines."""
    results = []
    for cls, how in ((steprule.Adam, {"engine": engine}), (torch.optim.Adam, {})):
        params = [nn.Parameter(torch.full((4,), 1.0 + i)) for i in range(3)]
        optimizer = cls(params, lr=0.1, **how)
        for step, _ in enumerate(gradients(params, 14)):
            if step in (3, 4):
                params[1].grad = None
            if step == 6:
                params[0].grad = torch.tensor(2.0).expand(4)
            if step == 8:
                optimizer.state[params[2]].clear()
            if step == 9:
                optimizer.param_groups[0]["lr"] = 0.01
            if step == 11:
                params[0].data = params[0].data.clone()
            optimizer.step()
        results.append(params)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_first_step_that_failed_is_still_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Dampening leaves a parameter's first gradient whole."""
    results = []
    for fails in (True, False):
        params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
        optimizer = steprule.SGD(params, lr=1.0, momentum=0.9, dampening=0.5, engine="foreach")
        for param in params:
            param.grad = torch.ones(3)
        if fails:
            with monkeypatch.context() as patch:
                patch.setattr("steprule.engines.foreach.bucket.Bucket.stages", _out_of_memory)
                with pytest.raises(MemoryError):
                    optimizer.step()
        for _ in range(2):
            optimizer.step()
        results.append(params)
    assert all(map(torch.equal, *results))


def _out_of_memory(*_: Any) -> None:
    raise MemoryError


def test_kernels_and_other_engines_share_a_step() -> None:
    results = []
    for cls, how in (
        (steprule.Adam, {"engine": "auto"}),
        (torch.optim.Adam, {"foreach": False}),
    ):
        params = [nn.Parameter(torch.full((4,), 1.0 + i)) for i in range(4)]
        flags = {"foreach": True} if cls is steprule.Adam else {}
        optimizer = cls([{"params": params[:2]}, {"params": params[2:], **flags}], lr=0.1, **how)
        for step, _ in enumerate(gradients(params, 12)):
            if step > 6:
                optimizer.param_groups[1]["lr"] = 0.1 / step
            if step == 9:
                params[3].grad = None
            optimizer.step()
        results.append(params)
    for mine, theirs in zip(*results, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def test_a_loose_gradient_that_is_refused_leaves_the_kernels_part_alone() -> None:
    fast, loose = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 4)[:, :2])
    optimizer = steprule.Adam([fast, loose], lr=0.1)
    for _ in gradients([fast, loose], 4):
        optimizer.step()
    before = fast.detach().clone()
    loose.grad = torch.ones(4, 2).to_sparse()
    with pytest.raises(RuntimeError, match="sparse"):
        optimizer.step()
    assert torch.equal(fast, before)


def test_state_that_is_refused_once_may_be_mended() -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = steprule.Adam(params, engine="foreach")
    for _ in gradients(params, 4):
        optimizer.step()
    entry = optimizer.state[params[1]]
    kept = dict(entry)
    entry.clear()
    entry["step"] = "bad"
    with pytest.raises(RuntimeError, match="'step' of parameter 1 of group 0 is 'bad'"):
        optimizer.step()
    entry.update(kept)
    for _ in gradients(params, 2):
        optimizer.step()
    assert entry["step"] == 6


def test_two_threads_may_step_one_optimizer_off_the_kernels() -> None:
    """What comes of it is their business; nothing breaks."""
    params = [nn.Parameter(torch.ones(3)) for _ in range(30)]
    optimizer = steprule.Adam(params, engine="foreach")
    values = [torch.full((3,), float(i)) for i in range(30)]

    def steps() -> None:
        for _ in range(60):
            for param, value in zip(params, values, strict=True):
                param.grad = value.clone()
            optimizer.step()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(steps) for _ in range(2)]:
            done.result()


@pytest.mark.parametrize("engine", ["auto", "eager", "foreach"])
@pytest.mark.parametrize("name", rule_optimizers())
def test_the_meta_device_plans_without_running(name: str, engine: str) -> None:
    shapes = [(5, 7), (7, 5)]
    params = [torch.ones(s, device="meta", requires_grad=True) for s in shapes]
    optimizer: Any = steprule.rules.OPTIMIZERS[name.lower()](
        params, lr=0.1, engine=engine, clip_grad_norm=1.0
    )
    for _ in range(3):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    expected = "foreach" if engine == "auto" else engine
    assert {row.engine for row in optimizer.explain().rows} == {expected}
    state = optimizer.state.get(params[0], {})
    assert all(t.is_meta for t in state.values() if t.dim())
