"""SAM and Lookahead: beside other implementations, and with all that goes round an optimizer."""

from __future__ import annotations

import copy
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from formats import ROUNDINGS
from processes import ranks
from rank_programs import wrapped
from torch import Tensor, nn
from torch.distributed.checkpoint import state_dict as dcp
from wrapper_runs import BASE, LOOKAHEAD, SAMS, closure_of, loss_of, start, trained

import steprule
from steprule.optimizer import register_optimizer_step_post_hook
from steprule.wrappers import sam

TRAJECTORIES = Path(__file__).parent / "reference" / "trajectories" / "wrappers"
BASES: dict[str, Callable[..., Any]] = {
    "torch's SGD": lambda params: torch.optim.SGD(params, **BASE),
    "SGD": lambda params: steprule.SGD(params, **BASE),
}
WRAPPERS: dict[str, Callable[..., Any]] = {
    "SAM": lambda base: steprule.SAM(base, rho=0.3),
    "Lookahead": lambda base: steprule.Lookahead(base, **LOOKAHEAD),
    "both": lambda base: steprule.SAM(steprule.Lookahead(base, **LOOKAHEAD), rho=0.3),
}
EACH_BASE = pytest.mark.parametrize("base", BASES.values(), ids=list(BASES))
EACH_WRAPPER = pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=list(WRAPPERS))


def values(params: list[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def same(one: Any, other: Any) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def close_to(params: list[Tensor], name: str) -> None:
    """Compare with another implementation's: 50 steps of a few dozen roundings in float64."""
    wanted = json.loads((TRAJECTORIES / f"{name}.json").read_text())["params"]
    for param, expected in zip(params, wanted, strict=True):
        other = torch.tensor(expected, dtype=torch.float64).reshape(param.shape)
        torch.testing.assert_close(param, other, rtol=1e-9, atol=1e-11)


def step(optimizer: Any, params: list[Tensor], first: int, last: int) -> None:
    for k in range(first, last):
        optimizer.step(closure_of(optimizer, params, k))


# -- the formulas -----------------------------------------------------------------------------


@EACH_BASE
@pytest.mark.parametrize("name", SAMS)
def test_fifty_steps_of_sam_are_those_of_another_implementation(name: str, base: Any) -> None:
    close_to(trained(lambda params: steprule.SAM(base(params), **SAMS[name])), name)


@EACH_BASE
def test_fifty_steps_of_lookahead_are_those_of_another_implementation(base: Any) -> None:
    close_to(trained(lambda p: steprule.Lookahead(base(p), **LOOKAHEAD)), "Lookahead")


@EACH_BASE
def test_timms_slow_weights_start_after_the_first_k_steps(base: Any) -> None:
    params = start()
    inner = base(params)
    step(inner, params, 0, 4)
    step(steprule.Lookahead(inner, **LOOKAHEAD), params, 4, 50)
    close_to([p.detach() for p in params], "Lookahead_timm")


def test_nested_they_are_the_papers_loops() -> None:
    """By hand, with plain gradient steps in the middle."""
    params, weights = start(), values(start())
    optimizer = steprule.SAM(
        steprule.Lookahead(steprule.SGD(params, lr=0.1), k=2, alpha=0.3), rho=0.2
    )
    slow = [w.clone() for w in weights]
    for k in range(6):
        step(optimizer, params, k, k + 1)

        def gradients(at: list[Tensor], k: int = k) -> list[Tensor]:
            here = [w.clone().requires_grad_() for w in at]
            return list(torch.autograd.grad(loss_of(here, k), here))

        grads = gradients(weights)
        norm = torch.cat([g.flatten() for g in grads]).norm()
        there = [w + 0.2 * g / norm for w, g in zip(weights, grads, strict=True)]
        weights = [w - 0.1 * g for w, g in zip(weights, gradients(there), strict=True)]
        if k % 2:
            slow = [s + 0.3 * (w - s) for s, w in zip(slow, weights, strict=True)]
            weights = [s.clone() for s in slow]
    torch.testing.assert_close([p.detach() for p in params], weights, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("adaptive", [False, True])
def test_complex_parameters_are_pairs_of_reals(adaptive: bool) -> None:
    param = torch.randn(4, dtype=torch.complex128, requires_grad=True)
    pairs = torch.view_as_real(param.detach()).clone().requires_grad_()
    for tensor, grad in ((param, torch.ones_like(param) * (2 - 1j)), (pairs, None)):
        tensor.grad = torch.view_as_real(param.grad) if grad is None else grad  # type: ignore[arg-type]
        steprule.SAM(steprule.SGD([tensor]), rho=0.5, adaptive=adaptive).first_step()
    torch.testing.assert_close(torch.view_as_real(param.detach()), pairs.detach())


def test_half_precision_norms_do_not_overflow() -> None:
    """As of scaled gradients: the norm is beyond float16; of small ones its inverse."""
    for size in (60000.0, 6e-8):
        param = torch.zeros(4, dtype=torch.float16, requires_grad=True)
        param.grad = torch.full_like(param, size)
        steprule.SAM(torch.optim.SGD([param]), rho=0.5).first_step()
        torch.testing.assert_close(param.detach(), torch.full_like(param, 0.25))


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("size", [1e30, 1e-25])
def test_gradients_of_any_size_move_by_rho(size: float, adaptive: bool) -> None:
    """Squares of these are infinite in float32, or 0."""
    param = torch.ones(4, requires_grad=True)
    param.grad = torch.full_like(param, size)
    steprule.SAM(torch.optim.SGD([param]), rho=1.0, adaptive=adaptive).first_step()
    torch.testing.assert_close(param.detach(), torch.full_like(param, 1.5))
    least = torch.ones(1, requires_grad=True)
    least.grad = torch.full_like(least, 1e-44)
    steprule.SAM(torch.optim.SGD([least]), rho=1.0, adaptive=adaptive).first_step()
    assert least.isfinite().all()


# -- SAM's two evaluations --------------------------------------------------------------------


def test_without_a_closure_it_is_the_same() -> None:
    params, others = start(), start()
    optimizer = steprule.SAM(steprule.AdamW(params))
    other = steprule.SAM(steprule.AdamW(others))
    for k in range(4):
        step(optimizer, params, k, k + 1)
        loss_of(others, k).backward()
        other.first_step(zero_grad=True)
        assert others[0].grad is None
        loss_of(others, k).backward()
        other.second_step(zero_grad=True)
        assert others[0].grad is None
    same(values(params), values(others))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_evaluation_that_fails_leaves_all_as_it_was(
    error: type[BaseException], dtype: torch.dtype
) -> None:
    params = [p.detach().to(dtype).requires_grad_() for p in start()]
    optimizer = steprule.SAM(steprule.AdamW(params, param_rounding="nearest"), rho=0.3)
    step(optimizer, params, 0, 2)
    before, state = values(params), copy.deepcopy(optimizer.state_dict())
    calls = []

    def closure() -> Any:
        calls.append(values(params))
        if len(calls) == 2:
            raise error
        return closure_of(optimizer, params, 2)()

    with pytest.raises(error):
        optimizer.step(closure)
    assert not torch.equal(calls[1][0], before[0])
    same(values(params), before)
    same(optimizer.state_dict(), state)
    step(optimizer, params, 2, 3)


def test_an_interrupt_at_any_line_leaves_no_weight_moved() -> None:
    """One after the other, each line of a step."""
    lines = 0
    while True:
        param = torch.ones(3, requires_grad=True)
        inner = steprule.SGD([param], lr=0.0)
        optimizer = steprule.SAM(inner, rho=0.5)
        left = [lines]

        def interrupt(frame: Any, event: str, _: Any, left: list[int] = left) -> Any:
            if event == "line" and frame.f_code.co_filename == sam.__file__:
                left[0] -= 1
                if left[0] < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return interrupt

        def closure(optimizer: Any = optimizer, param: Tensor = param) -> Tensor:
            optimizer.zero_grad()
            loss = param.square().sum()
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        before, mode = sys.gettrace(), torch.is_grad_enabled()
        sys.settrace(interrupt)
        try:
            optimizer.step(closure)
        except KeyboardInterrupt:
            same(param.detach(), torch.ones(3))
            torch.set_grad_enabled(mode)  # the line before a `with` has begun may have set it
            inner.step()
            lines += 1
            continue
        finally:
            sys.settrace(before)
        break
    assert lines > 40


def test_a_step_that_the_base_refuses_leaves_the_weights_in_place() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.SAM(steprule.SGD([param], on_nonfinite="raise"))
    param.grad = torch.ones(3)
    optimizer.first_step()
    param.grad = torch.full((3,), float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        optimizer.second_step()
    same(param.detach(), torch.ones(3))
    param.grad = torch.ones(3)
    optimizer.first_step()
    optimizer.restore()
    optimizer.restore()
    same(param.detach(), torch.ones(3))


def test_a_first_step_that_fails_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.SAM(steprule.SGD([param], lr=0.1))
    param.grad = torch.ones(3)

    def failing(tensors: list[Tensor], *_: Any, **__: Any) -> None:
        tensors[0].fill_(7.0)
        raise MemoryError

    monkeypatch.setattr(torch, "_foreach_add_", failing)
    with pytest.raises(MemoryError):
        optimizer.first_step()
    same(param.detach(), torch.ones(3))
    monkeypatch.undo()
    optimizer.first_step()
    optimizer.second_step()


def test_parameters_without_gradients_stay() -> None:
    params = [torch.ones(2, requires_grad=True) for _ in range(2)] + [torch.ones(2)]
    optimizer = steprule.SAM(steprule.SGD(params, lr=0.1))
    optimizer.first_step()  # nothing has one
    optimizer.second_step()
    params[0].grad = torch.ones(2)
    optimizer.first_step(zero_grad=True)
    assert params[0].detach().ne(1).all()
    params[1].grad = torch.ones(2)  # has one at the second evaluation only
    optimizer.second_step()
    same(values(params), [torch.ones(2), torch.full((2,), 0.9), torch.ones(2)])


def test_gradients_of_zero_move_nothing() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.SAM(steprule.SGD([param]), adaptive=True)
    param.grad = torch.zeros(2)
    optimizer.first_step()
    same(param.detach(), torch.ones(2))


def test_steps_out_of_order_say_what_is_due() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.SAM(steprule.SGD([param], lr=0.1))
    param.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="pass a closure"):
        optimizer.step()
    with pytest.raises(RuntimeError, match="comes after first_step"):
        optimizer.second_step()
    optimizer.first_step()
    moved = param.detach().clone()
    for call in (
        optimizer.first_step,
        lambda: optimizer.step(lambda: 0.0),
        optimizer.state_dict,
        lambda: optimizer.load_state_dict({}),
        lambda: pickle.dumps(optimizer),
    ):
        with pytest.raises(RuntimeError, match=r"second_step\(\) first, or restore\(\)"):
            call()
    same(param.detach(), moved)
    optimizer.step()  # is the second one
    same(param.detach(), torch.full((2,), 0.9))
    with pytest.raises(RuntimeError, match=r"no parameter has a gradient: have it call loss"):
        optimizer.step(lambda: optimizer.zero_grad())


@EACH_BASE
def test_what_is_wrapped_refuses_to_work_on_moved_weights(base: Any) -> None:
    params = start()
    inner = base(params)
    ahead = steprule.Lookahead(inner, **LOOKAHEAD)
    optimizer = steprule.SAM(ahead, rho=0.3)
    step(optimizer, params, 0, 1)
    before, state = values(params), copy.deepcopy(optimizer.state_dict())
    loss_of(params, 1).backward()
    optimizer.first_step()
    moved = values(params)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(params, 1)).backward()
    for one in (inner, ahead):
        for call in (
            one.step,
            lambda one=one: scaler.step(one),
            one.state_dict,
            lambda one=one: one.load_state_dict(state),
        ):
            with pytest.raises(RuntimeError, match=r"SAM's first_step\(\) and second_step\(\)"):
                call()
            same(values(params), moved)
    optimizer.restore()
    same(values(params), before)
    same(optimizer.state_dict(), state)
    for one in (inner, ahead, optimizer):
        one.load_state_dict(one.state_dict())
    inner.step()


def test_modes_and_averages_wait_for_the_second_step() -> None:
    params = start()
    inner = steprule.ScheduleFreeAdamW(params, ema_decay=0.9)
    optimizer: Any = steprule.SAM(inner, rho=0.3)
    step(optimizer, params, 0, 2)
    loss_of(params, 2).backward()
    optimizer.first_step()
    moved = values(params)
    for call in (
        *(optimizer.train, optimizer.eval, optimizer.averaged, optimizer.init_state),
        *(inner.train, inner.eval, lambda: optimizer.save("nowhere")),
    ):
        with pytest.raises(RuntimeError, match=r"restore\(\)"):
            call()
    same(values(params), moved)
    optimizer.second_step()
    optimizer.eval()
    optimizer.train()
    with optimizer.averaged():
        pass


def test_a_scaler_unscales_skips_and_puts_back() -> None:
    params, others = start(), start()
    optimizer = steprule.SAM(steprule.SGD(params, lr=0.1), rho=0.3)
    other = steprule.SAM(steprule.SGD(others, lr=0.1), rho=0.3)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for k, factor in enumerate((1.0, float("inf"), 1.0)):
        before = values(params)
        seen = []
        for half in (lambda: optimizer.first_step(zero_grad=True), lambda: scaler.step(optimizer)):
            scaler.scale(loss_of(params, k) * factor).backward()
            seen.append(values(params))
            half()
        scaler.update()
        optimizer.zero_grad()
        if factor == 1.0:
            step(other, others, k, k + 1)
            torch.testing.assert_close(params, others, rtol=1e-12, atol=1e-13)
        else:  # nor were the weights moved, where batch norm would have seen it
            same(seen, [before, before])
            same(values(params), before)
    optimizer.step(closure_of(optimizer, params, 3))
    scaler.scale(loss_of(params, 4)).backward()
    with pytest.raises(RuntimeError, match="takes no closure"):
        scaler.step(optimizer, lambda: None)


def test_gradients_that_were_unscaled_are_not_divided_again() -> None:
    param = torch.ones(1, requires_grad=True)
    optimizer = steprule.SAM(torch.optim.SGD([param], lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(param.sum()).backward()
    optimizer.first_step(zero_grad=True)
    scaler.scale(param.sum()).backward()
    scaler.unscale_(optimizer)
    torch.nn.utils.clip_grad_norm_([param], 0.5)
    scaler.step(optimizer)
    torch.testing.assert_close(param.detach(), torch.tensor([0.95]))


def test_first_gradients_that_were_unscaled_are_refused() -> None:
    """Of the second ones the scaler believes the same: the step would be 4 times too long."""
    param = torch.ones(1, requires_grad=True)
    optimizer = steprule.SAM(torch.optim.SGD([param], lr=0.1))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for is_early in (True, False):
        scaler.scale(param.sum()).backward()
        if is_early:
            scaler.unscale_(optimizer)
        optimizer.first_step(zero_grad=True)
        scaler.scale(param.sum()).backward()
        if is_early:
            with pytest.raises(RuntimeError, match="after the second backward pass"):
                scaler.step(optimizer)
            same(param.detach(), torch.ones(1))
        else:
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            torch.testing.assert_close(param.detach(), torch.tensor([0.9]))
        optimizer.zero_grad()
        scaler.update(4.0)


# -- what they share with the wrapped optimizer -----------------------------------------------


@EACH_BASE
@EACH_WRAPPER
def test_groups_state_and_schedulers_are_the_wrapped_ones(wrap: Any, base: Any) -> None:
    params = start()
    inner = base(params)
    optimizer = wrap(inner)
    assert isinstance(optimizer, torch.optim.Optimizer)
    schedulers = [
        torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5),
        steprule.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
    ]
    for k in range(2):
        step(optimizer, params, k, k + 1)
        for scheduler in schedulers:
            scheduler.step()
    assert inner.param_groups[0]["lr"] == 0.05 / 16
    for _ in range(2):
        assert optimizer.param_groups is inner.param_groups
        assert optimizer.state is inner.state
        assert optimizer.defaults is inner.defaults
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    more = torch.ones(2, dtype=torch.float64, requires_grad=True)
    optimizer.add_param_group({"params": [more], "lr": 0.1})
    assert inner.param_groups[1]["params"] == [more]
    step(optimizer, [*params, more], 2, 3)
    optimizer.zero_grad(set_to_none=False)
    assert params[0].grad is not None
    assert not params[0].grad.any()


@EACH_BASE
@EACH_WRAPPER
@pytest.mark.parametrize("at", [5, 6])
def test_a_run_is_resumed_in_the_midst_of_a_cycle(
    at: int, wrap: Any, base: Any, tmp_path: Path
) -> None:
    params, others = start(), start()
    optimizer, other = wrap(base(params)), wrap(base(others))
    step(optimizer, params, 0, at)
    if at == 5:
        optimizer.save(tmp_path / "state")
    saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    if at == 5:
        other.load(tmp_path / "state")
    else:
        other.load_state_dict(saved)
    for one, its_params in ((optimizer, params), (other, others)):
        step(one, its_params, at, 9)
    same(values(others), values(params))
    same(other.state_dict(), optimizer.state_dict())
    assert all(entry.keys() == {"momentum_buffer"} for entry in other.state.values())


@EACH_WRAPPER
def test_training_files_hold_wrappers(wrap: Any, tmp_path: Path) -> None:
    params, others = start(), start()
    model, second = nn.ParameterList(params), nn.ParameterList(others)
    optimizer = wrap(steprule.AdamW(model.named_parameters()))
    step(optimizer, list(model), 0, 3)
    steprule.save_training(tmp_path / "run", model=model, optimizer=optimizer, step=3)
    other = wrap(steprule.AdamW(second.named_parameters()))
    steprule.load_training(tmp_path / "run", model=second, optimizer=other)
    for one, its_model in ((optimizer, model), (other, second)):
        step(one, list(its_model), 3, 7)
    same(values(list(second)), values(list(model)))


def test_slow_weights_follow_their_parameters_names() -> None:
    params, others = start(), start()
    pairs = [(f"p{i}", p) for i, p in enumerate(params)]
    turned = [(f"p{i}", p) for i, p in enumerate(others)][::-1]
    optimizer = steprule.Lookahead(steprule.AdamW(pairs), **LOOKAHEAD)
    step(optimizer, params, 0, 2)
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other = steprule.Lookahead(steprule.AdamW(turned), k=9)
    other.load_state_dict(optimizer.state_dict(), keep=["lr"])
    assert (other.k, other.alpha) == (4, 0.3)
    step(optimizer, params, 2, 5)
    step(other, others, 2, 5)
    same(values(others), values(params))


@EACH_BASE
def test_the_wrapped_optimizer_and_the_wrapper_take_each_others_state(base: Any) -> None:
    params = start()
    inner = base(params)
    optimizer = steprule.Lookahead(inner, **LOOKAHEAD)
    step(optimizer, params, 0, 3)
    base(start()).load_state_dict(optimizer.state_dict())
    plain = inner.state_dict()
    assert "lookahead" not in plain
    assert "slow_param" not in plain["state"][0]
    optimizer.load_state_dict(plain)
    now = values(params)
    assert not optimizer._slow  # begins anew, from here
    step(optimizer, params, 3, 4)
    same(list(optimizer._slow.values()), now)


def test_copies_go_their_own_way() -> None:
    model = nn.ParameterList(start())
    optimizer = steprule.SAM(steprule.Lookahead(steprule.SGD(model.parameters(), lr=0.1), k=2))
    # torch's puts a step of its own on the optimizer, bound to it.
    schedulers = [
        torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=1.0),
        torch.optim.lr_scheduler.StepLR(optimizer.optimizer, step_size=1, gamma=1.0),
    ]
    step(optimizer, list(model), 0, 3)
    for scheduler in schedulers:
        scheduler.step()
    for copied, its_model in (
        copy.deepcopy((optimizer, model)),
        pickle.loads(pickle.dumps((optimizer, model))),
    ):
        step(copied, list(its_model), 3, 5)
        kept = values(list(model))
        twin, its = copy.deepcopy((optimizer, model))
        step(twin, list(its), 3, 5)
        same(values(list(its_model)), values(list(its)))
        same(values(list(model)), kept)


@EACH_BASE
@EACH_WRAPPER
def test_of_a_step_for_state_alone_nothing_is_left(wrap: Any, base: Any) -> None:
    """torch.distributed.checkpoint takes one where there is no state yet."""
    model = nn.ParameterList(start())
    optimizer = wrap(base(model.parameters()))
    before, state = values(list(model)), copy.deepcopy(optimizer.state_dict())
    if not isinstance(optimizer, steprule.SAM):
        dcp.get_optimizer_state_dict(model, optimizer)
        assert optimizer.state
        assert optimizer.state_dict()["lookahead"] == state["lookahead"]
    same(values(list(model)), before)


@EACH_BASE
@EACH_WRAPPER
def test_hooks_run_once_a_step(wrap: Any, base: Any) -> None:
    params = start()
    optimizer = wrap(base(params))
    calls: list[Any] = []
    optimizer.register_step_pre_hook(lambda who, *_: calls.append(("before", who)))
    optimizer.register_step_post_hook(lambda who, *_: calls.append(("after", who)))
    optimizer.register_state_dict_post_hook(lambda _, packed: {**packed, "mark": 1})
    optimizer.register_load_state_dict_pre_hook(lambda _, packed: calls.append(packed["mark"]))
    everyones: list[Any] = []
    handle = register_optimizer_step_post_hook(lambda *_: everyones.append(1))
    try:
        step(optimizer, params, 0, 1)
    finally:
        handle.remove()
    assert calls == [("before", optimizer), ("after", optimizer)]
    assert everyones == [1]
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls[2:] == [1]


def test_what_ours_can_is_passed_through() -> None:
    params = start()
    optimizer: Any = steprule.SAM(steprule.Lookahead(steprule.AdamW(params, ema_decay=0.9)))
    step(optimizer, params, 0, 1)
    assert len(optimizer.explain().rows) == 3
    rows = {row.slot: row.bytes for row in optimizer.state_bytes().rows}
    assert rows["slow_param"] == rows["exp_avg"] == 8 * sum(p.numel() for p in params)
    with optimizer.averaged():
        before = values(params)
        with pytest.raises(RuntimeError, match="running averages"):
            step(optimizer, params, 1, 2)
        same(values(params), before)
    assert repr(optimizer).startswith("SAM(rho=0.05, adaptive=False) round Lookahead(k=5, alpha=")
    with pytest.raises(AttributeError, match="nonsense"):
        _ = optimizer.nonsense
    optimizer.engine = "eager"
    assert optimizer.engine == optimizer.optimizer.optimizer.engine == "eager"
    assert {row.engine for row in optimizer.explain().rows} == {"eager"}
    free: Any = steprule.SAM(steprule.ScheduleFreeAdamW(params))
    step(free, params, 0, 2)
    free.eval()
    with pytest.raises(RuntimeError, match=r"optimizer.train\(\)"):
        step(free, params, 2, 3)
    free.train()
    step(free, params, 2, 3)


# -- Lookahead --------------------------------------------------------------------------------


def test_lookahead_steps_with_a_scaler_and_without_a_closure() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.Lookahead(steprule.SGD([param], lr=0.1), k=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor in (1.0, float("inf"), 1.0):
        optimizer.zero_grad()
        scaler.scale((param * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
    # Two steps of 0.1, and back by half: the one that was skipped does not count.
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.9))


def test_lookahead_goes_round_lbfgs() -> None:
    params = start()
    optimizer = steprule.Lookahead(steprule.LBFGS(params, lr=0.1, max_iter=2), k=2)
    step(optimizer, params, 0, 4)
    assert all(p.isfinite().all() for p in params)


EACH_ROUNDING = pytest.mark.parametrize("rounding", ROUNDINGS)


def descend(optimizer: Any, param: Tensor, steps: int) -> None:
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()


@EACH_ROUNDING
def test_a_move_by_nothing_changes_no_bit(rounding: str) -> None:
    """With k=1 and alpha=1 it is the wrapped optimizer, what is kept beside weights included."""
    params = [torch.linspace(-2, 2, 999).bfloat16().requires_grad_() for _ in range(2)]
    plain, inner = (steprule.AdamW([p], lr=1e-4, param_rounding=rounding) for p in params)
    descend(plain, params[0], 30)
    descend(steprule.Lookahead(inner, k=1, alpha=1.0), params[1], 30)
    same(params[1], params[0])
    same(inner.state[params[1]], plain.state[params[0]])


@EACH_ROUNDING
def test_moves_too_small_for_16_bits_are_made(rounding: str) -> None:
    # Where numbers near 1 are 2**-8 apart; a step to the nearest has to be as long to be made.
    lr, steps = (1 / 64, 10) if rounding == "nearest" else (1e-4, 100)
    param = torch.linspace(0.9, 1.1, 999).bfloat16().requires_grad_()
    start_at = param.detach().float()
    optimizer = steprule.Lookahead(steprule.SGD([param], lr=lr, param_rounding=rounding))
    descend(optimizer, param, steps)
    (slow,) = optimizer._slow.values()
    assert slow.dtype is torch.float32
    moved = (slow - start_at).mean().item()
    # 999 weights rounded at random, by 2**-8 at most, are off by 1e-4 on average.
    assert abs(moved / (-lr * steps / 2) - 1) < 0.1, moved


def test_moves_of_sharded_weights_are_rounded_alike() -> None:
    ((one, whole), (other, _)) = ranks(2).run(wrapped.rounded)
    same(one, whole)
    same(other, whole)


def test_sharded_slow_weights_are_saved_by_all_ranks(tmp_path: Path) -> None:
    for went_on, resumed in ranks(2).run(wrapped.resumed, str(tmp_path / "state")):
        same(resumed, went_on)


@pytest.mark.parametrize("module", [steprule, torch.optim])
def test_lookahead_round_lbfgs_loads_what_it_saved(module: Any, tmp_path: Path) -> None:
    params, others = start(), start()
    optimizer, other = (
        steprule.Lookahead(module.LBFGS(each, lr=0.1, max_iter=2), k=3) for each in (params, others)
    )
    step(optimizer, params, 0, 4)
    optimizer.save(tmp_path / "state")
    with torch.no_grad():
        for p, q in zip(params, others, strict=True):
            q.copy_(p)
    other.load(tmp_path / "state")
    step(optimizer, params, 4, 7)
    step(other, others, 4, 7)
    same(values(others), values(params))


@pytest.mark.parametrize("module", [steprule, torch.optim])
def test_a_parameter_without_state_has_none_in_the_state_dict(module: Any) -> None:
    """torch's optimizers would take an entry with slow weights alone for one of theirs."""
    params = start()
    optimizer = steprule.Lookahead(module.AdamW(params))
    params[0].grad = torch.ones_like(params[0])
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    assert saved["state"].keys() == {0}
    assert saved["lookahead"]["slow_param"].keys() == {0, 1, 2}
    for other in (steprule.AdamW, torch.optim.AdamW):
        alone = other(params)
        alone.load_state_dict(copy.deepcopy(saved))
        for p in params:
            p.grad = torch.ones_like(p)
        alone.step()
        assert "lookahead" not in alone.state_dict()  # nothing stale to go back to


def test_steps_that_guards_skip_are_not_counted() -> None:
    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.Lookahead(steprule.SGD([param], lr=0.1, on_nonfinite="skip"), k=2)
    for factor in (float("nan"), 1.0, float("nan"), float("nan"), 1.0):
        param.grad = torch.full((2,), factor)
        optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.9))
    assert optimizer.state_dict()["lookahead"]["steps"] == 2


def test_a_step_that_fails_starts_no_slow_weights() -> None:
    param = torch.ones(2, requires_grad=True)
    inner = steprule.SGD([param], lr=0.1, on_nonfinite="raise", ema_decay=0.9)
    optimizer = steprule.Lookahead(inner, k=1)
    param.grad = torch.full((2,), float("nan"))
    with pytest.raises(RuntimeError, match="not finite"):
        optimizer.step()
    assert (optimizer._steps, optimizer._slow) == (0, {})
    inner.init_state()
    with torch.no_grad():
        inner.state[param]["param_ema"].fill_(100.0)
    param.grad = torch.ones(2)
    with inner.averaged(), pytest.raises(RuntimeError, match="running averages"):
        optimizer.step()
    optimizer.step()
    torch.testing.assert_close(param.detach(), torch.full((2,), 0.95))


@EACH_BASE
def test_slow_weights_follow_a_model_that_is_cast(base: Any) -> None:
    model = nn.Linear(3, 2)
    optimizer = steprule.Lookahead(base(model.parameters()), k=2)
    for dtype in (torch.float32, torch.float64, torch.float64):
        optimizer.zero_grad()
        optimizer.state.clear()  # a momentum's is the wrapped optimizer's business
        model.to(dtype)
        model(torch.ones(1, 3, dtype=dtype)).sum().backward()
        optimizer.step()
    assert {slow.dtype for slow in optimizer._slow.values()} == {torch.float64}


def test_parameters_that_join_or_thaw_later_start_where_they_are() -> None:
    first, frozen = torch.ones(1, requires_grad=True), torch.ones(1)
    optimizer = steprule.Lookahead(torch.optim.Adam([first, frozen], lr=0.1), k=2)
    for k in range(4):
        first.grad = torch.ones(1)
        if k == 2:
            frozen.requires_grad_()
        frozen.grad = torch.ones(1) if k >= 2 else None
        optimizer.step()
    # Adam's steps of a constant gradient are of 0.1 each.
    torch.testing.assert_close(frozen.detach(), torch.tensor([0.9]), rtol=0, atol=1e-6)
    torch.testing.assert_close(first.detach(), torch.tensor([0.8]), rtol=0, atol=1e-6)


# -- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [steprule.SAM, steprule.Lookahead])
def test_what_is_no_optimizer_is_refused(wrap: Any) -> None:
    model = nn.Linear(2, 1)
    for what in (model.parameters(), steprule.SGD, None):
        with pytest.raises(TypeError, match="goes round an optimizer, got"):
            wrap(what)
    inside = wrap(steprule.SGD(model.parameters()))
    with pytest.raises(TypeError, match="inside already"):
        wrap(inside)
    stepping = steprule.step_in_backward(model, steprule.SGD)
    with pytest.raises(TypeError, match="steps in the backward pass"):
        wrap(stepping)


def test_what_can_not_be_wrapped_says_why() -> None:
    params = start()
    for lbfgs in (steprule.LBFGS(params), torch.optim.LBFGS(params)):
        with pytest.raises(TypeError, match="SAM can't go round LBFGS"):
            steprule.SAM(lbfgs)
        with pytest.raises(TypeError, match="SAM can't go round L"):
            steprule.SAM(steprule.Lookahead(lbfgs))
    with pytest.raises(TypeError, match=r"SAM\(Lookahead\(optimizer\)\)"):
        steprule.Lookahead(steprule.SAM(steprule.SGD(params)))
    with pytest.raises(TypeError, match="ScheduleFreeSGD, which averages its weights"):
        steprule.Lookahead(steprule.ScheduleFreeSGD(params))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: steprule.SAM(p, rho=-1.0), ValueError, "rho must be"),
        (lambda p: steprule.SAM(p, rho="much"), TypeError, "rho must be"),
        (lambda p: steprule.SAM(p, adaptive="yes"), TypeError, "adaptive must be True or False"),
        (lambda p: steprule.Lookahead(p, k=0), ValueError, "k must be"),
        (lambda p: steprule.Lookahead(p, k=2.5), ValueError, "k must be"),
        (lambda p: steprule.Lookahead(p, alpha=0.0), ValueError, "alpha must be above 0"),
        (lambda p: steprule.Lookahead(p, alpha=1.5), ValueError, "alpha must be"),
    ],
)
def test_numbers_out_of_their_range_are_refused(
    make: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(steprule.SGD(start()))


@pytest.mark.parametrize("module", [steprule, torch.optim])
@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"k": 0}, "k must be"),
        (3, "must be a dict"),
        ({"steps": -1}, "steps must be"),
        ({"bogus": 1}, "has 'bogus', which is nothing of a 'lookahead'"),
        ({"slow_param": 3}, "slow weights must be a dict"),
        ({"slow_param": {7: torch.ones(3)}}, "7 is no parameter"),
        ({"slow_param": {1: torch.ones(2)}}, r"parameter 1 of group 0: saved with shape \(2,\)"),
        ({"slow_param": {1: torch.ones(3, dtype=torch.int32)}}, "saved as torch.int32"),
        ({"slow_param": {1: torch.ones(3, dtype=torch.complex64)}}, "saved as torch.complex64"),
        ({"slow_param": {1: torch.ones(3, device="meta")}}, "is on meta"),
        ({"slow_param": {1: [1.0, 2.0]}}, "is no tensor"),
    ],
    ids=str,
)
def test_a_state_dict_that_is_refused_changes_nothing(own: Any, message: str, module: Any) -> None:
    params = start()
    optimizer = steprule.Lookahead(module.AdamW(params), k=2)
    step(optimizer, params, 0, 3)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        optimizer.load_state_dict({**before, "lookahead": own})
    for bad in ({**before, "param_groups": []}, "nothing"):
        with pytest.raises((TypeError, ValueError, AttributeError)):
            optimizer.load_state_dict(bad)  # type: ignore[arg-type]
    same(optimizer.state_dict(), before)


def test_slow_weights_that_do_not_fit_are_left_out_where_that_is_asked_for() -> None:
    params = start()
    optimizer = steprule.Lookahead(steprule.AdamW(params), k=2)
    step(optimizer, params, 0, 3)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["lookahead"]["slow_param"][1] = torch.ones(2)
    optimizer.load_state_dict(saved, strict=False)
    assert list(optimizer._slow) == [params[0], params[2]]


@EACH_WRAPPER
def test_autograd_is_not_to_see_half_of_a_step(wrap: Any) -> None:
    params = [p.detach().clone().requires_grad_() for p in start()]
    inner = steprule.SGD([p * 1 for p in params], lr=0.1, differentiable=True)
    with pytest.raises(ValueError, match="differentiable=True lets autograd through"):
        wrap(inner)
    later = wrap(steprule.SGD(params, lr=0.1))
    later.param_groups[0]["differentiable"] = True
    with pytest.raises(ValueError, match="gradients would be wrong"):
        later.step(closure_of(later, params, 0))


def test_what_is_set_later_is_checked_as_well() -> None:
    for optimizer, name, value in (
        (steprule.SAM(steprule.SGD(start())), "rho", float("nan")),
        (steprule.SAM(steprule.SGD(start())), "rho", "0.1"),
        (steprule.SAM(steprule.SGD(start())), "adaptive", "no"),
        (steprule.Lookahead(steprule.SGD(start())), "k", 0),
        (steprule.Lookahead(steprule.SGD(start())), "alpha", 2.0),
    ):
        before = getattr(optimizer, name)
        with pytest.raises((TypeError, ValueError), match=f"{name} must be"):
            setattr(optimizer, name, value)
        assert getattr(optimizer, name) == before


@EACH_WRAPPER
def test_what_is_wanted_of_another_optimizer_says_which_has_it(wrap: Any) -> None:
    params = start()
    optimizer = wrap(torch.optim.AdamW(params))
    name = type(optimizer).__name__
    with pytest.raises(TypeError, match=f"{name}.*strict: only .* AdamW, which is none of these"):
        optimizer.load_state_dict(optimizer.state_dict(), strict=True)
    with pytest.raises(AttributeError, match=f"{name} has no .*'explain', nor has AdamW.*steprule"):
        optimizer.explain()
    with pytest.raises(AttributeError, match="no attribute 'engine'"):
        optimizer.engine = "eager"
    with pytest.raises(
        TypeError, match=rf"{name}\.step: closure must be a function or None, got 3"
    ):
        optimizer.step(3)
    with pytest.raises(TypeError, match=rf"wrap what combine\(\) returns, {name}\(combine"):
        steprule.combine(optimizer, steprule.SGD(params))


def test_sparse_gradients_are_refused_by_name() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    optimizer = steprule.SAM(steprule.SGD(table.named_parameters()))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match=r"'weight' is torch\.sparse_coo"):
        optimizer.first_step()


# -- ranks ------------------------------------------------------------------------------------


def test_sharded_parameters_move_as_whole_ones_do() -> None:
    wanted = wrapped.on_one_process()
    for found in ranks(2).run(wrapped.sharded):
        # Norms are summed over ranks in another order.
        torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-13)


class Imitation:
    """As Lightning's: takes the class of what it holds, and hands on a closure at every step."""

    def __init__(self, optimizer: Any) -> None:
        self._optimizer = optimizer
        self.__class__ = type("Imitating", (Imitation, type(optimizer)), {})

    @property
    def optimizer(self) -> Any:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure or (lambda: None))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._optimizer, name)


def test_two_steps_of_sam_may_be_called_through_an_imitation() -> None:
    ends = []
    for imitate in (lambda optimizer: optimizer, Imitation):
        param = torch.ones(3, requires_grad=True)
        optimizer = imitate(steprule.SAM(steprule.SGD([param], lr=0.1), rho=0.5))
        for is_given_up in (False, True, False):
            param.grad = 2 * param.detach()
            optimizer.first_step()
            param.grad = 2 * param.detach()
            optimizer.restore() if is_given_up else optimizer.second_step()
        ends.append(param.detach())
    same(*ends)


def test_a_state_may_be_loaded_through_an_imitation() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.Lookahead(steprule.SGD([param], lr=0.1), k=3)
    param.grad = torch.ones(3)
    optimizer.step()
    Imitation(optimizer).load_state_dict(optimizer.state_dict())
    assert optimizer.state_dict()["lookahead"]["steps"] == 1
