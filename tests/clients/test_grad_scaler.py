"""torch.amp.GradScaler on the CPU: every engine, steps that are skipped, clipping, resume.

What single parts do with a scaler has tests there (wrappers, schedule-free, SAM, LBFGS, schedules,
devices); here are training loops as scripts have them, beside the same loop on torch's optimizer.
"""

from __future__ import annotations

import copy
import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

import steprule

ENGINES = ("eager", "foreach", "fused")
# float32, a dozen steps: the roundings of tests/helpers.py for 50.
CLOSE = {"rtol": 2e-5, "atol": 1e-5}
STEPS = 10
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "SGD": {"lr": 0.1, "momentum": 0.9},
    "Adam": {"lr": 0.01},
    "AdamW": {"lr": 0.01, "weight_decay": 0.1, "amsgrad": True},
    "Adagrad": {"lr": 0.05},
    "RMSprop": {"lr": 0.01},
    "NAdam": {"lr": 0.01},
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def loss_of(net: nn.Module, k: int, dtype: torch.dtype | None = None) -> Tensor:
    """The loss of batch ``k``; it overflows in batches 2 and 6."""
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(k))
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        loss: Tensor = net(x).square().mean()
    return loss.float() * (math.inf if k in (2, 6) else 1.0)


def scaler_of(**options: Any) -> Any:
    return torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3, **options)


def trained(
    net: nn.Module,
    optimizer: Any,
    scaler: Any,
    steps: range = range(STEPS),
    *,
    max_norm: float | None = None,
    unscales: bool = False,
    dtype: torch.dtype | None = None,
) -> list[float]:
    """The loop of PyTorch's examples; returns the scale after each step."""
    scales = []
    for k in steps:
        optimizer.zero_grad()
        scaler.scale(loss_of(net, k, dtype)).backward()
        if max_norm is not None or unscales:
            scaler.unscale_(optimizer)
        if max_norm is not None:
            clip_grad_norm_(net.parameters(), max_norm)
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return scales


def numbers(net: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in net.parameters()]


def counts(optimizer: Any) -> list[float]:
    return [float(entry["step"]) for entry in optimizer.state.values() if "step" in entry]


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("max_norm", [None, 0.1])
def test_a_loop_is_torchs(name: str, engine: str, max_norm: float | None) -> None:
    """Scaled, unscaled, clipped, stepped; two steps skipped; the scale falls and grows."""
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        net = network()
        optimizer = getattr(package, name)(net.parameters(), **OPTIMIZERS[name], **more)
        scales = trained(net, optimizer, scaler_of(), max_norm=max_norm)
        found.append((scales, counts(optimizer), numbers(net)))
    torch.testing.assert_close(*reversed(found), **CLOSE)
    assert {a / b for a, b in itertools.pairwise(found[1][0])} == {0.5, 1.0, 2.0}
    assert all(count == STEPS - 2 for count in found[1][1])


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast(engine: str, dtype: torch.dtype) -> None:
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        net = network()
        optimizer = package.AdamW(net.parameters(), lr=0.01, **more)
        scales = trained(net, optimizer, scaler_of(), dtype=dtype)
        found.append((scales, numbers(net)))
    assert found[0][0] == found[1][0]
    # one rounding of a weight to 16 bits that falls the other way moves its gradient by 2**-8
    torch.testing.assert_close(*reversed(found), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_skipped_step_leaves_everything(engine: str) -> None:
    net = network()
    optimizer = steprule.Adam(net.parameters(), lr=0.01, engine=engine, ema_decay=0.9)
    scaler = scaler_of()
    trained(net, optimizer, scaler, range(2))
    before = copy.deepcopy((net.state_dict(), optimizer.state_dict()))
    trained(net, optimizer, scaler, range(2, 3))
    torch.testing.assert_close((net.state_dict(), optimizer.state_dict()), before, rtol=0, atol=0)
    assert scaler.get_scale() == 2**9


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("unscales", [False, True])
def test_our_clipping_means_unscaled_gradients(engine: str, unscales: bool) -> None:
    """`clip_grad_norm=` in the step is `unscale_` and `clip_grad_norm_` before it."""
    theirs, ours = network(), network()
    options = OPTIMIZERS["SGD"]
    expected = trained(
        theirs, torch.optim.SGD(theirs.parameters(), **options), scaler_of(), max_norm=0.1
    )
    optimizer = steprule.SGD(ours.parameters(), **options, clip_grad_norm=0.1, engine=engine)
    assert trained(ours, optimizer, scaler_of(), unscales=unscales) == expected
    # clip_grad_norm_ divides by the norm plus 1e-6
    torch.testing.assert_close(numbers(ours), numbers(theirs), rtol=1e-4, atol=1e-5)
    assert optimizer.last_step.grad_norm < 10


@pytest.mark.parametrize("on_nonfinite", ["skip", "raise"])
def test_the_scaler_skips_before_our_guard_is_asked(on_nonfinite: str) -> None:
    net = network()
    optimizer = steprule.Adam(net.parameters(), lr=0.01, on_nonfinite=on_nonfinite)
    scales = trained(net, optimizer, scaler_of())
    assert scales[2] == 2**9
    assert optimizer.last_step.skipped_so_far == 0
    assert counts(optimizer) == [STEPS - 2] * 4


@pytest.mark.parametrize("engine", ENGINES)
def test_two_optimizers_with_one_scaler(engine: str) -> None:
    """Only the one whose gradients overflow is skipped; the scale is one."""
    found = []
    for package, more in ((torch.optim, {}), (steprule, {"engine": engine})):
        nets = [network(), network()]
        optimizers = [
            package.Adam(nets[0].parameters(), lr=0.01, **more),
            package.SGD(nets[1].parameters(), lr=0.1, momentum=0.9, **more),
        ]
        scaler, scales = scaler_of(), []
        for k in range(STEPS):
            for i, optimizer in enumerate(optimizers):
                optimizer.zero_grad()
                # the second net's batches overflow at other steps
                scaler.scale(loss_of(nets[i], k + i)).backward()
            for optimizer in optimizers:
                scaler.step(optimizer)
            scaler.update()
            scales.append(scaler.get_scale())
        found.append((scales, counts(optimizers[0]), *map(numbers, nets)))
    torch.testing.assert_close(*reversed(found), **CLOSE)
    assert found[1][1] == [STEPS - 2] * 4


@pytest.mark.parametrize("name", ["Adam", "SGD"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(name: str, engine: str) -> None:
    def made() -> Any:
        net = network()
        cls = getattr(steprule, name)
        return net, cls(net.parameters(), **OPTIMIZERS[name], engine=engine), scaler_of()

    whole, half, resumed = made(), made(), made()
    expected = trained(*whole)
    trained(*half, range(5))
    for new, old in zip(resumed, half, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    assert trained(*resumed, range(5, STEPS)) == expected[5:]
    assert all(map(torch.equal, numbers(resumed[0]), numbers(whole[0])))


def test_accumulated_gradients() -> None:
    """Unscaled, stepped and updated once for several backward passes of one scale."""
    found = []
    for package in (torch.optim, steprule):
        net = network()
        optimizer = package.AdamW(net.parameters(), lr=0.01)
        scaler = scaler_of()
        for k in range(STEPS):
            scaler.scale(loss_of(net, k) / 2).backward()
            if k % 2:
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
        found.append((scaler.get_scale(), counts(optimizer), numbers(net)))
    torch.testing.assert_close(*reversed(found), **CLOSE)


@pytest.mark.parametrize("package", [torch.optim, steprule])
def test_what_a_scaler_refuses_it_refuses_for_ours(package: Any) -> None:
    net = network()
    optimizer = package.SGD(net.parameters(), lr=0.1)
    scaler = scaler_of()
    scaler.scale(loss_of(net, 0)).backward()
    with pytest.raises(RuntimeError, match="Closure use is not currently supported"):
        scaler.step(optimizer, closure=lambda: torch.zeros(()))
    scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match=r"unscale_\(\) has already been called"):
        scaler.unscale_(optimizer)
    scaler.step(optimizer)
    with pytest.raises(RuntimeError, match=r"step\(\) has already been called"):
        scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    with pytest.raises(AssertionError, match="No inf checks were recorded"):
        scaler.step(optimizer)


def test_a_scaler_that_is_off_takes_a_closure() -> None:
    found = []
    for package in (torch.optim, steprule):
        net = network()
        optimizer = package.LBFGS(net.parameters(), max_iter=3, line_search_fn="strong_wolfe")
        scaler = scaler_of(enabled=False)

        def closure(net: nn.Module = net, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(net, 0)
            loss.backward()
            return loss

        for _ in range(2):
            scaler.step(optimizer, closure=closure)
            scaler.update()
        found.append(numbers(net))
    torch.testing.assert_close(*reversed(found), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["Adam", "AdamW", "SGD", "Adagrad"])
@pytest.mark.parametrize("overflows", [False, True])
def test_a_scale_left_at_a_fused_optimizer(name: str, overflows: bool) -> None:
    """`grad_scale` and `found_inf` as attributes, as scalers of other libraries leave them."""
    found = []
    for package in (torch.optim, steprule):
        net = network()
        optimizer = getattr(package, name)(net.parameters(), lr=0.1, fused=True)
        loss_of(net, 0).backward()
        optimizer.step()
        for param in net.parameters():
            param.grad = param.detach() * 8.0
        optimizer.grad_scale = torch.tensor(8.0)
        optimizer.found_inf = torch.tensor(float(overflows))
        optimizer.step()
        del optimizer.grad_scale, optimizer.found_inf
        for param in net.parameters():
            param.grad = param.detach().clone()
        optimizer.step()
        found.append((numbers(net), counts(optimizer)))
    torch.testing.assert_close(*reversed(found), **CLOSE)
