"""SAM and Lookahead: beside other implementations, and with all that goes round an optimizer."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ranks
from rank_programs import wrapped
from torch import Tensor, nn
from wrapper_runs import BASE, LOOKAHEAD, SAMS, closure_of, loss_of, start, trained

import steprule
from steprule.optimizer import register_optimizer_step_post_hook

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
    """As of scaled gradients: the norm is beyond float16."""
    param = torch.zeros(4, dtype=torch.float16, requires_grad=True)
    param.grad = torch.full_like(param, 60000.0)
    steprule.SAM(torch.optim.SGD([param]), rho=0.5).first_step()
    torch.testing.assert_close(param.detach(), torch.full_like(param, 0.25))


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
    step(optimizer, list(model), 0, 3)
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


@pytest.mark.parametrize("rounding", ["kahan", "split"])
def test_lookahead_leaves_no_bits_of_what_a_parameter_was(rounding: str) -> None:
    param = torch.ones(300, dtype=torch.bfloat16, requires_grad=True)
    optimizer = steprule.Lookahead(steprule.SGD([param], lr=0.013, param_rounding=rounding), k=2)
    for _ in range(2):
        param.grad = torch.ones_like(param)
        optimizer.step()
    parts = [value for key, value in optimizer.state[param].items() if key.startswith("param:")]
    assert parts
    assert not any(part.any() for part in parts)


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


def test_a_state_dict_that_is_refused_changes_nothing() -> None:
    params = start()
    optimizer = steprule.Lookahead(steprule.AdamW(params), k=2)
    step(optimizer, params, 0, 3)
    before = copy.deepcopy(optimizer.state_dict())
    for bad in (
        {**before, "lookahead": {"k": 0}},
        {**before, "lookahead": 3},
        {**before, "param_groups": []},
        "nothing",
    ):
        with pytest.raises((TypeError, ValueError)):
            optimizer.load_state_dict(bad)  # type: ignore[arg-type]
        same(optimizer.state_dict(), before)


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
