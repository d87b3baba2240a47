"""``combine``: several optimizers as one object, with the steps that each would take by itself."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from typing import Any

import pytest
import torch
from torch import nn

import steprule
from steprule.ops import norm_of


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def split(net: nn.Module) -> tuple[list[Any], list[Any]]:
    hidden = [p for p in net.parameters() if p.ndim == 2]
    return hidden, [p for p in net.parameters() if p.ndim != 2]


def two(net: nn.Module, **options: Any) -> tuple[Any, Any]:
    hidden, rest = split(net)
    return steprule.Muon(hidden, lr=0.02, **options), steprule.AdamW(rest, lr=3e-3, **options)


def backward(net: nn.Module, step: int, scale: float = 1.0) -> Any:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 6, generator=generator)
    net.zero_grad()
    loss = (net(x) ** 2).sum() * scale
    loss.backward()
    return loss


def params_of(net: nn.Module) -> list[Any]:
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("engine", ["auto", "eager", "foreach"])
def test_a_step_is_each_ones_own(engine: str) -> None:
    one, other = model(), model()
    combined = steprule.combine(*two(one, engine=engine))
    apart = two(other, engine=engine)
    for step in range(25):
        backward(one, step)
        backward(other, step)
        combined.step()
        for optimizer in apart:
            optimizer.step()
    torch.testing.assert_close(params_of(one), params_of(other), rtol=0, atol=0)
    assert isinstance(combined, torch.optim.Optimizer)
    assert [g["optimizer"] for g in combined.param_groups] == ["Muon", "AdamW"]
    assert "passes over its elements: orthogonalized; update" in str(combined.explain())


@pytest.mark.parametrize("engine", ["auto", "eager"])
def test_clipping_is_by_the_norm_of_all(engine: str) -> None:
    one, other = model(), model()
    combined = steprule.combine(*two(one, engine=engine), clip_grad_norm=0.1)
    apart = two(other, engine=engine)
    for step in range(20):
        backward(one, step)
        backward(other, step)
        combined.step()
        norm = torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        for optimizer in apart:
            optimizer.step()
        assert combined.last_step.grad_norm == pytest.approx(norm.item(), rel=1e-5)
    torch.testing.assert_close(params_of(one), params_of(other), rtol=2e-3, atol=2e-4)


def test_a_step_that_is_skipped_is_skipped_by_all() -> None:
    net = model()
    combined = steprule.combine(*two(net), on_nonfinite="skip")
    backward(net, 0)
    combined.step()
    before, state = params_of(net), copy.deepcopy(combined.state_dict())
    before = [p.clone() for p in before]
    backward(net, 1)
    split(net)[1][0].grad[0] = math.nan
    combined.step()
    assert combined.last_step.skipped
    torch.testing.assert_close(params_of(net), before, rtol=0, atol=0)
    torch.testing.assert_close(combined.state_dict()["state"], state["state"], rtol=0, atol=0)


def test_resume_by_state_dict_pickle_and_copy() -> None:
    def trained(stop: int | None, how: str) -> list[Any]:
        net = model()
        rate = steprule.schedules.linear(1.0, 0.1, steps=20)
        hidden, rest = split(net)
        muon = steprule.Muon(hidden, lr=rate)
        optimizer: Any = steprule.combine(muon, steprule.AdamW(rest, lr=3e-3), clip_grad_norm=rate)
        for step in range(8):
            if step == stop:
                if how == "pickle":
                    net, optimizer = pickle.loads(pickle.dumps((net, optimizer)))
                elif how == "copy":
                    net, optimizer = copy.deepcopy((net, optimizer))
                else:
                    saved = copy.deepcopy(optimizer.state_dict())
                    optimizer = steprule.combine(*two(net))
                    optimizer.load_state_dict(saved)
            backward(net, step)
            optimizer.step()
        assert optimizer.param_groups[0]["lr"] == pytest.approx(1 - 0.9 * 8 / 20)
        assert optimizer.param_groups[1]["clip_grad_norm"] == pytest.approx(1 - 0.9 * 8 / 20)
        return params_of(net)

    expected = trained(None, "")
    for how in ("state dict", "pickle", "copy"):
        torch.testing.assert_close(trained(4, how), expected, rtol=0, atol=0)


def test_clients_see_one_optimizer() -> None:
    net = model()
    combined = steprule.combine(*two(net))
    scheduler = torch.optim.lr_scheduler.LambdaLR(combined, lambda step: 0.5**step)
    ours = steprule.lr_scheduler.StepLR(combined, step_size=3)
    seen = []
    combined.register_step_post_hook(lambda *_: seen.append(1))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)  # type: ignore[attr-defined]
    scaler.scale(backward(net, 0)).item()
    scaler.step(combined)
    scheduler.step()
    ours.step()
    assert [g["lr"] for g in combined.param_groups] == [0.01, 0.0015]
    assert seen == [1]
    combined.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    assert combined.step(lambda: backward(net, 1)) is not None


def test_groups_that_are_added_name_their_optimizer() -> None:
    net = model()
    combined = steprule.combine(*two(net))
    more = torch.ones(3, requires_grad=True)
    with pytest.raises(ValueError, match=r"group 2: say which .*'optimizer' must be one of 'Muon'"):
        combined.add_param_group({"params": [more]})
    with pytest.raises(ValueError, match=r"got 'AdamWW' \(did you mean 'AdamW'\?\)"):
        combined.add_param_group({"params": [more], "optimizer": "AdamWW"})
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        combined.add_param_group({"params": [more], "optimizer": "Muon"})
    assert len(combined.param_groups) == 2
    combined.add_param_group({"params": [more], "optimizer": "AdamW", "lr": 1.0})
    assert combined.param_groups[2]["betas"] == (0.9, 0.999)
    more.grad = torch.ones(3)
    combined.step()
    assert float(more.detach()[0]) < 0.1
    alone = steprule.combine(steprule.SGD([torch.ones(2, requires_grad=True)], lr=0.1))
    alone.add_param_group({"params": [more]})  # there is only one that can be meant


def test_what_cannot_be_combined_is_refused() -> None:
    def param() -> Any:
        return torch.ones(2, requires_grad=True)

    shared = param()
    cases: list[tuple[list[Any], type[Exception], str]] = [
        ([], ValueError, "needs optimizers"),
        ([torch.optim.SGD([param()])], TypeError, "SGD is torch's"),
        ([steprule.LBFGS([param()])], TypeError, "LBFGS has none"),
        ([3], TypeError, "int is no optimizer"),
        (
            [steprule.SGD([param()], lr=0.1), steprule.Adam([param()], engine="eager")],
            ValueError,
            "one engine, got 'auto' and 'eager'",
        ),
        (
            [steprule.SGD([shared], lr=0.1), steprule.Adam([shared])],
            ValueError,
            "already in group 0",
        ),
    ]
    for given, error, message in cases:
        with pytest.raises(error, match=message):
            steprule.combine(*given)
    with pytest.raises(TypeError, match="unexpected keyword argument 'lr'"):
        steprule.combine(steprule.SGD([param()], lr=0.1), lr=0.1)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="group 0: clip_grad_norm must be a number > 0"):
        steprule.combine(steprule.SGD([param()], lr=0.1), clip_grad_norm=-1.0)


def test_a_state_dict_of_other_optimizers_is_refused() -> None:
    net = model()
    hidden, rest = split(net)
    combined = steprule.combine(*two(net))
    other = steprule.combine(steprule.SGD(hidden, lr=0.1), steprule.AdamW(rest))
    before = copy.deepcopy(combined.state_dict())
    with pytest.raises(ValueError, match=r"group 0: it was updated by SGD.*updated by Muon"):
        combined.load_state_dict(other.state_dict())
    assert combined.state_dict()["param_groups"] == before["param_groups"]


def test_two_rules_with_sums_over_all_keep_apart() -> None:
    @steprule.rule
    def unit(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * grad / norm_of(grad, over="all")

    @steprule.rule
    def half(param: Any, grad: Any, *, lr: Any) -> Any:
        return param - lr * grad / (2 * norm_of(grad, over="all"))

    params = [torch.zeros(4, requires_grad=True) for _ in range(2)]
    first = steprule.make_optimizer(unit, name="Unit", lr=1.0)(params[:1])
    second = steprule.make_optimizer(half, name="Half", lr=1.0)(params[1:])
    combined = steprule.combine(first, second)
    for param in params:
        param.grad = torch.full((4,), 3.0)
    combined.step()
    assert [float(p.detach().norm()) for p in params] == pytest.approx([1.0, 0.5])


def test_sums_over_several_beside_whole_native_steps() -> None:
    """Kernels take whole steps; what is on another engine has sums over several parameters."""

    def trained(net: nn.Module, optimizers: list[Any]) -> list[Any]:
        for step in range(12):
            backward(net, step)
            for optimizer in optimizers:
                optimizer.step()
        return params_of(net)

    def two_of(net: nn.Module) -> tuple[Any, Any]:
        hidden, rest = split(net)
        prodigy = steprule.Prodigy([{"params": hidden, "foreach": True}])
        return prodigy, steprule.AdamW(rest, lr=3e-3)

    one, other = model(), model()
    combined = steprule.combine(*two_of(one))
    expected = trained(other, list(two_of(other)))
    torch.testing.assert_close(trained(one, [combined]), expected, rtol=0, atol=0)
    assert {row.engine for row in combined.explain().rows} == {"foreach", "fused"}


def test_nothing_outlives_it() -> None:
    net = model()
    combined = steprule.combine(*two(net))
    for step in range(3):
        backward(net, step)
        combined.step()
    gone = [weakref.ref(p) for p in net.parameters()]
    gc.disable()
    try:
        del net, combined
        assert not any(ref() is not None for ref in gone)
    finally:
        gc.enable()
