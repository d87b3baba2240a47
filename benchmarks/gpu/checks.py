"""What must hold on a card: each check raises where it does not."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable, Iterator
from typing import Any

import torch
from runs import MATRICES, Run, check_same, has_sums, made, names

import steprule
from steprule.rules import OPTIMIZERS

Check = Callable[[torch.device], None]
CHECKS: dict[str, Check] = {}


def check(function: Check) -> Check:
    """Add a check, named by its function."""
    CHECKS[function.__name__] = function
    return function


def with_cpu(name: str, device: torch.device, dtype: torch.dtype, **options: Any) -> None:
    """Check an optimizer on the device against the CPU's kernel."""
    what = f"{name} {str(dtype).removeprefix('torch.')} {options}"
    ours = made(name, device, dtype, engine="triton", **options).train(3)
    theirs = made(name, torch.device("cpu"), dtype, engine="fused", **options).train(3)
    assert ours.engines() == {"triton"}, f"{what}: {ours.optimizer.explain()}"
    check_same(ours, theirs, what, exact=not has_sums(name), dtype=dtype)


@check
def every_rule_and_dtype(device: torch.device) -> None:
    for name in names():
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            with_cpu(name, device, dtype)


@check
def complex_parameters(device: torch.device) -> None:
    for dtype in (torch.complex64, torch.complex128):
        for name in ("adam", "sgd", "rmsprop"):
            with_cpu(name, device, dtype)


FORMATS: tuple[tuple[torch.dtype, dict[str, Any]], ...] = (
    (torch.float32, {"state_format": "bfloat16"}),
    (torch.float32, {"state_format": "int8"}),
    (torch.float32, {"state_format": "int4"}),
    (torch.bfloat16, {"param_rounding": "stochastic"}),
    (torch.float16, {"param_rounding": "stochastic"}),
    (torch.bfloat16, {"param_rounding": "kahan"}),
    (torch.bfloat16, {"param_rounding": "split"}),
    (torch.bfloat16, {"param_rounding": "split24", "state_format": "int4"}),
    (torch.bfloat16, {"param_rounding": "split", "state_format": "int8"}),
)


@check
def every_format(device: torch.device) -> None:
    for dtype, options in FORMATS:
        for name in ("adam", "sgd", "rmsprop", "nadam"):
            own = {"momentum": 0.9} if name == "sgd" else {}
            with_cpu(name, device, dtype, state_format_min_size=1, **options, **own)


@check
def options_of_every_rule(device: torch.device) -> None:
    for name in ("adam", "sgd", "rmsprop", "lamb"):
        with_cpu(name, device, torch.float32, maximize=True, weight_decay=0.1, clip_grad_value=0.5)
    with_cpu("adam", device, torch.float32, amsgrad=True)
    with_cpu("rmsprop", device, torch.float32, centered=True, momentum=0.9)
    with_cpu("sgd", device, torch.float32, momentum=0.9, nesterov=True)


@check
def against_torch(device: torch.device) -> None:
    for name in ("Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adagrad", "Adamax"):
        params = [torch.randn(64, 65, device=device).requires_grad_() for _ in range(3)]
        twins = [p.detach().clone().requires_grad_() for p in params]
        ours = OPTIMIZERS[name.lower()](params, lr=0.01)  # type: ignore[call-arg]
        theirs = getattr(torch.optim, name)(twins, lr=0.01)
        for _ in range(10):
            for p, q in zip(params, twins, strict=True):
                p.grad = torch.randn_like(p)
                q.grad = p.grad.clone()
            ours.step()
            theirs.step()
        for p, q in zip(params, twins, strict=True):
            torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


@check
def gradients_come_go_and_move(device: torch.device) -> None:
    missing = ((0,), (), (1, 3), (0, 1, 2, 3, 4))
    for name in ("adam", "sgd", "lamb"):
        ours = made(name, device, engine="triton").train(6, missing)
        theirs = made(name, torch.device("cpu"), engine="fused").train(6, missing)
        check_same(ours, theirs, name, exact=not has_sums(name), dtype=torch.float32)


@check
def odd_addresses_and_layouts(device: torch.device) -> None:
    runs = []
    for where in (device, torch.device("cpu")):
        run = made("adam", where, engine="triton" if where == device else "fused")
        generator = torch.Generator().manual_seed(1)
        whole = torch.randn(5001, generator=generator).to(where)
        turned = torch.randn(40, 30, generator=generator).to(where).t()
        last = torch.randn(2, 3, 8, 8, generator=generator).to(where)
        run.params = [
            whole[1:].detach().requires_grad_(),  # at no multiple of 16 bytes
            turned.detach().requires_grad_(),
            last.to(memory_format=torch.channels_last).detach().requires_grad_(),
        ]
        engine = run.optimizer.engine
        run.optimizer = steprule.Adam(run.params, engine=engine)
        runs.append(run.train(3))
    assert runs[0].engines() == {"triton"}, runs[0].optimizer.explain()
    check_same(*runs, "layouts", exact=True, dtype=torch.float32)


@check
def groups_and_schedules(device: torch.device) -> None:
    runs = []
    for where in (device, torch.device("cpu")):
        run = made("adamw", where, engine="triton" if where == device else "fused")
        groups = [
            {"params": run.params[:2], "lr": steprule.schedules.linear(0.1, 0.01, steps=6)},
            {"params": run.params[2:], "weight_decay": 0.3, "betas": (0.5, 0.9)},
        ]
        run.optimizer = steprule.AdamW(groups, engine=run.optimizer.engine)
        runs.append(run.train(5))
    check_same(*runs, "groups", exact=True, dtype=torch.float32)


@check
def guards(device: torch.device) -> None:
    for over in ("all", "group", "param"):
        for name in ("adam", "lamb"):
            options: dict[str, Any] = {"clip_grad_norm": 0.5, "clip_grad_norm_over": over}
            ours = made(name, device, engine="triton", **options).train(3)
            theirs = made(name, torch.device("cpu"), engine="fused", **options).train(3)
            check_same(ours, theirs, f"{name} {over}", exact=False, dtype=torch.float32)
            if over != "param":
                mine, other = ours.optimizer.last_step, theirs.optimizer.last_step
                assert abs(mine.grad_norm - other.grad_norm) < 1e-6 * other.grad_norm  # type: ignore[operator]
    run = made("adam", device, engine="triton", on_nonfinite="skip").train(1)
    before = run.tensors()
    run.set_grads()
    run.params[0].grad[0, 0] = torch.inf  # type: ignore[index]
    run.optimizer.step()
    assert run.optimizer.last_step.skipped
    after = run.tensors()
    assert all(torch.equal(before[k], after[k]) for k in before)


@check
def a_scaler_calls_steps_off(device: torch.device) -> None:
    """Against the same steps without a scaler, and without the one that overflows."""
    runs = []
    for is_scaled in (True, False):
        run = made("adam", device, engine="triton")
        for k in range(4):
            run.set_grads(scale=1024.0 if is_scaled else 1.0)
            overflows = k == 1
            if is_scaled:
                run.optimizer.found_inf = torch.full((), float(overflows), device=device)
                run.optimizer.grad_scale = torch.full((), 1024.0, device=device)
                run.optimizer.step()
                del run.optimizer.found_inf, run.optimizer.grad_scale
            elif not overflows:
                run.optimizer.step()
        runs.append(run)
    # Powers in the scalars are the device's in one, the host's in the other.
    exact = device.type == "cpu"
    check_same(*runs, "scaler", exact=exact, dtype=torch.float32)


@check
def resume_and_copies(device: torch.device) -> None:
    for options in ({}, {"state_format": "int8", "state_format_min_size": 1}):
        whole = made("adam", device, engine="triton", **options).train(4)
        first = made("adam", device, engine="triton", **options).train(2)
        file = io.BytesIO()
        torch.save(first.optimizer.state_dict(), file)
        file.seek(0)
        second = made("adam", device, engine="triton", **options)
        with torch.no_grad():
            for mine, theirs in zip(second.params, first.params, strict=True):
                mine.copy_(theirs)
        second.optimizer.load_state_dict(torch.load(file, weights_only=True))
        second.steps = 2
        check_same(second.train(2), whole, "resume", exact=True, dtype=torch.float32)
        other = copy.deepcopy(first.optimizer)
        twin = Run(device, other, other.param_groups[0]["params"], steps=2)
        check_same(twin.train(2), whole, "copy", exact=True, dtype=torch.float32)


@check
def products_of_matrices(device: torch.device) -> None:
    ours = made("muon", device, sizes=MATRICES, engine="triton").train(3, ((), (1,)))
    theirs = made("muon", device, sizes=MATRICES, engine="foreach").train(3, ((), (1,)))
    assert ours.engines() <= {"triton", "none"}, ours.optimizer.explain()
    # Products in bfloat16, in stacks of other sizes.
    check_same(ours, theirs, "muon", exact=False, dtype=torch.bfloat16)


@contextlib.contextmanager
def without_waiting(device: torch.device) -> Iterator[None]:
    """Have torch raise where the host waits for the card."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@check
def no_step_waits(device: torch.device) -> None:
    for name in names():
        for options in ({}, {"clip_grad_norm": 1.0}):
            run = made(name, device, engine="triton", **options).train(2)
            run.set_grads()
            with without_waiting(device):
                run.optimizer.step()


def of_a_card(function: Check) -> Check:
    """Mark a check that means nothing without a card."""
    function.needs_card = True  # type: ignore[attr-defined]
    return check(function)


@of_a_card
def a_graph_replays_steps(device: torch.device) -> None:
    for name in ("adam", "adamw", "rmsprop", "nadam"):
        run = made(name, device, engine="triton", capturable=True)
        run.set_grads()
        held = [p.grad for p in run.params]
        side = torch.cuda.Stream(device)
        side.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(side):
            run.optimizer.step()
        torch.cuda.current_stream(device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run.optimizer.step()
        twin = made(name, device, engine="triton", capturable=True)
        twin.set_grads()
        twin.optimizer.step()
        for k in range(4):
            run.steps = twin.steps = k + 10
            twin.set_grads()
            for mine, theirs in zip(held, twin.params, strict=True):
                mine.copy_(theirs.grad)  # type: ignore[union-attr]
            graph.replay()
            twin.optimizer.step()
            if k == 1:  # a step outside the graph, with gradients elsewhere
                run.set_grads()
                twin.steps = run.steps - 1
                twin.set_grads()
                run.optimizer.step()
                twin.optimizer.step()
                for p, grad in zip(run.params, held, strict=True):
                    p.grad = grad
        torch.cuda.synchronize()
        check_same(run, twin, f"graph of {name}", exact=True, dtype=torch.float32)


@of_a_card
def a_graph_without_capturable_is_refused(device: torch.device) -> None:
    run = made("adam", device, engine="triton").train(1)
    run.set_grads()
    graph = torch.cuda.CUDAGraph()
    said = ""
    try:
        with torch.cuda.graph(graph):
            run.optimizer.step()
    except RuntimeError as error:
        said = str(error)
    assert "capturable" in said, said or "it was captured"


@of_a_card
def torchs_own_scaler(device: torch.device) -> None:
    results = []
    for cls in (steprule.AdamW, torch.optim.AdamW):
        torch.manual_seed(0)
        model = torch.nn.Linear(64, 64, device=device)
        optimizer = cls(model.parameters(), lr=1e-2, fused=True)
        scaler = torch.amp.GradScaler("cuda", init_scale=2.0**17, growth_interval=2)
        data = torch.randn(32, 64, device=device)
        for k in range(8):
            with torch.autocast("cuda", dtype=torch.float16):
                loss = model(data).square().mean() * (1e9 if k == 3 else 1.0)
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            with without_waiting(device) if k else contextlib.nullcontext():
                scaler.step(optimizer)
            scaler.update()
        results.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@of_a_card
def streams_and_threads(device: torch.device) -> None:
    whole = made("adam", device, engine="triton").train(5)
    run = made("adam", device, engine="triton")
    streams = [torch.cuda.Stream(device) for _ in range(3)]
    for k in range(5):
        stream = streams[k % 3]
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            run.set_grads()
            run.optimizer.step()
        torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize()
    check_same(run, whole, "streams", exact=True, dtype=torch.float32)


@of_a_card
def many_steps_without_waiting(device: torch.device) -> None:
    """The host may run far ahead: what it sends must not be overwritten on its way."""
    runs = []
    for waits in (False, True):
        run = made("adam", device, sizes=((1 << 20,), (7,)), engine="triton")
        run.set_grads()
        heavy = torch.randn(4096, 4096, device=device)
        for _ in range(100):
            if not waits:
                heavy = heavy @ heavy * 1e-4
            run.optimizer.step()
            if waits:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        runs.append(run)
    check_same(*runs, "far ahead", exact=True, dtype=torch.float32)


@of_a_card
def a_compiled_train_step(device: torch.device) -> None:
    losses = []
    for is_compiled in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(
            torch.nn.Linear(32, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
        )
        model = model.to(device)
        optimizer = steprule.Adam(model.parameters(), lr=1e-2)
        data = torch.randn(64, 32, device=device)

        def step(
            model: torch.nn.Module = model,
            optimizer: steprule.Optimizer = optimizer,
            data: torch.Tensor = data,
        ) -> torch.Tensor:
            optimizer.zero_grad()
            loss: torch.Tensor = model(data).square().mean()
            loss.backward()
            optimizer.step()
            return loss

        # Without the back end that needs a C compiler: it is the graph breaks that are looked at.
        run = torch.compile(step, backend="aot_eager") if is_compiled else step
        losses.append([float(run()) for _ in range(5)])
    assert max(abs(a - b) for a, b in zip(*losses, strict=True)) < 1e-4, losses


@of_a_card
def two_cards(_: torch.device) -> None:
    if torch.cuda.device_count() < 2:
        return
    params = [torch.randn(999, device=f"cuda:{i}").requires_grad_() for i in (0, 1, 0)]
    twins = [p.detach().cpu().requires_grad_() for p in params]
    ours, theirs = steprule.Adam(params), steprule.Adam(twins)
    for _ in range(3):
        for p, q in zip(params, twins, strict=True):
            q.grad = torch.randn_like(q)
            p.grad = q.grad.to(p.device)
        ours.step()
        theirs.step()
    for p, q in zip(params, twins, strict=True):
        assert torch.equal(p.detach().cpu(), q.detach())


@of_a_card
def the_default_is_one_launch(device: torch.device) -> None:
    params = [torch.randn(100, device=device).requires_grad_() for _ in range(50)]
    optimizer = steprule.Adam(params)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {"triton"}, optimizer.explain()
    kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=kinds) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    found = [event for event in profile.events() if event.name == "update"]
    assert len(found) == 1, f"{len(found)} launches"
