"""How long steps take, torch's and ours side by side in one process.

A card's time is that between two events round some steps, which the host has issued far ahead; wall
time is the host's for the same steps, until the card has done them.
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import steprule

Step = Callable[[], Any]


def language_model() -> list[tuple[int, ...]]:
    """Shapes of a language model: 1.2 billion numbers in 290 tensors."""
    width, hidden, layers = 1728, 4608, 32
    layer = [(width, width)] * 4 + [(hidden, width)] * 2 + [(width, hidden)] + [(width,)] * 2
    return [(32000, width), *layer * layers, (width,)]


def article_network() -> list[tuple[int, ...]]:
    """Shapes of the article's network."""
    return [(200, 784), (200,), (10, 200), (10,)]


SETS: dict[str, list[tuple[int, ...]]] = {
    "1.2B floats in 290 tensors": language_model(),
    "1000 tensors of 1024": [(32, 32)] * 1000,
    "10,000 tensors of 16": [(16,)] * 10000,
    "the article's network": article_network(),
}


def tensors(
    shapes: Sequence[tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Parameters with gradients."""
    params = [torch.full(s, 0.5, device=device, dtype=dtype).requires_grad_() for s in shapes]
    for param in params:
        param.grad = torch.full_like(param, 0.01)
    return params


def timed(step: Step, seconds: float = 0.6) -> dict[str, float]:
    """Milliseconds of a step: on the card, on the wall, and of the host alone."""
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    began = time.perf_counter()
    step()
    torch.cuda.synchronize()
    once = max(time.perf_counter() - began, 1e-5)
    count = max(5, min(300, int(seconds / once)))
    cards, walls, hosts = [], [], []
    for _ in range(3):
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        began = time.perf_counter()
        first.record()
        for _ in range(count):
            step()
        last.record()
        hosts.append((time.perf_counter() - began) / count)
        torch.cuda.synchronize()
        walls.append((time.perf_counter() - began) / count)
        cards.append(first.elapsed_time(last) / count)
    return {
        "card_ms": min(cards),
        "wall_ms": 1e3 * min(walls),
        "host_ms": 1e3 * min(hosts),
        "steps": count,
    }


def time_optimizer(
    make: Callable[[list[Tensor]], Any],
    shapes: Sequence[tuple[int, ...]],
    device: torch.device,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """Time an optimizer over parameters of its own, which are gone afterwards."""
    optimizer = None
    try:
        optimizer = make(tensors(shapes, device, dtype))
        found: dict[str, Any] = timed(optimizer.step)
        if isinstance(optimizer, steprule.Optimizer):
            found["engines"] = sorted({row.engine for row in optimizer.explain().rows})
    except torch.cuda.OutOfMemoryError as error:
        found = {"left out": str(error).split("\n")[0]}
    del optimizer
    gc.collect()
    torch.cuda.empty_cache()
    return found


def copy_bandwidth(device: torch.device) -> float:
    """Bytes a second that a copy within the card reads and writes."""
    source = torch.ones(1 << 28, device=device)
    target = torch.empty_like(source)
    milliseconds = timed(lambda: target.copy_(source))["card_ms"]
    return 2 * source.nbytes / milliseconds * 1e3


# Bytes that a step reads and writes for each number.
MOVED = {"Adam": 28, "AdamW": 28, "SGD": 20, "RMSprop": 20, "Adagrad": 20, "NAdam": 28, "RAdam": 28}
OPTIONS: dict[str, dict[str, Any]] = {"SGD": {"lr": 1e-3, "momentum": 0.9}}
WITH_FUSED = ("Adam", "AdamW", "SGD", "Adagrad")


def side_by_side(device: torch.device, budget_s: float) -> dict[str, Any]:
    """Time every set: optimizers of ours, torch's fused, torch's foreach."""
    found: dict[str, Any] = {}
    began = time.perf_counter()
    for title, shapes in SETS.items():
        is_large = title.startswith("1.2B")
        names = ("Adam", "AdamW", "SGD", "RMSprop", "NAdam") if is_large else ("Adam", "SGD")
        rows = found[title] = {}
        for name in names:
            if time.perf_counter() - began > budget_s:
                rows[name] = {"left out": "the time was up"}
                continue
            ours, theirs = getattr(steprule, name), getattr(torch.optim, name)
            options = OPTIONS.get(name, {"lr": 1e-3})
            row = rows[name] = {
                "steprule": time_optimizer(lambda p: ours(p, **options), shapes, device),  # noqa: B023
            }
            ways = ("fused", "foreach") if name in WITH_FUSED else ("foreach",)
            for way in ways:
                row[way] = time_optimizer(
                    lambda p: theirs(p, **options, **{way: True}),  # noqa: B023
                    shapes,
                    device,
                )
            if is_large:
                elements = sum(torch.Size(s).numel() for s in shapes)
                row["bytes"] = MOVED[name] * elements
    return found


def formats(device: torch.device) -> dict[str, Any]:
    """Time Adam with state in 8 bits and weights in two halves, and clipping, on 300M numbers."""
    shapes = language_model()[:72]
    elements = sum(torch.Size(s).numel() for s in shapes)
    half = torch.bfloat16
    found: dict[str, Any] = {
        "elements": elements,
        "torch fused float32": time_optimizer(
            lambda p: torch.optim.Adam(p, fused=True), shapes, device
        ),
        "torch fused bfloat16": time_optimizer(
            lambda p: torch.optim.Adam(p, fused=True), shapes, device, half
        ),
        "plain": time_optimizer(steprule.Adam, shapes, device),
        "clipped": time_optimizer(lambda p: steprule.Adam(p, clip_grad_norm=1.0), shapes, device),
    }
    for state, rounding, dtype in (
        ("bfloat16", "nearest", torch.float32),
        ("int8", "nearest", torch.float32),
        ("int4", "nearest", torch.float32),
        ("int8", "split", half),
        ("int8", "stochastic", half),
        ("int4", "split24", half),
    ):

        def make(params: list[Tensor], state: str = state, rounding: str = rounding) -> Any:
            return steprule.Adam(params, state_format=state, param_rounding=rounding)

        label = f"{str(dtype).removeprefix('torch.')} {state} {rounding}"
        found[label] = time_optimizer(make, shapes, device, dtype)
    try:
        import bitsandbytes as bnb
    except ImportError:
        found["bitsandbytes"] = {"left out": "it is not there"}
    else:
        found["bitsandbytes"] = time_optimizer(bnb.optim.Adam8bit, shapes, device)
    return found


def others(device: torch.device) -> dict[str, Any]:
    """Time the rules that torch has no fused kernel for, on 100M numbers, beside its foreach."""
    shapes = language_model()[1:28]
    found: dict[str, Any] = {}
    for name in ("RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop", "Adafactor"):
        ours, theirs = getattr(steprule, name), getattr(torch.optim, name, None)
        found[name] = {"steprule": time_optimizer(ours, shapes, device)}
        if theirs is not None:
            found[name]["foreach"] = time_optimizer(
                lambda p: theirs(p, foreach=True),  # noqa: B023
                shapes,
                device,
            )
    matrices = [s for s in shapes if len(s) == 2]
    for name in ("LAMB", "LARS", "Prodigy"):
        ours = getattr(steprule, name)
        found[name] = {
            engine: time_optimizer(lambda p: ours(p, engine=engine), shapes, device)  # noqa: B023
            for engine in ("triton", "foreach")
        }
    found["Muon"] = {
        engine: time_optimizer(lambda p: steprule.Muon(p, engine=engine), matrices, device)  # noqa: B023
        for engine in ("triton", "foreach")
    }
    return found


_FIRST = """
import json, sys, time
import torch
began = time.perf_counter()
torch.zeros(1, device="cuda"); torch.cuda.synchronize()
context = time.perf_counter() - began
began = time.perf_counter()
import steprule
imported = time.perf_counter() - began
params = [torch.ones(100, 100, device="cuda", requires_grad=True) for _ in range(4)]
for p in params:
    p.grad = torch.ones_like(p)
torch.cuda.synchronize()
began = time.perf_counter()
optimizer = steprule.Adam(params)
optimizer.step()
torch.cuda.synchronize()
first = time.perf_counter() - began
print(json.dumps({"import_s": imported, "first_step_s": first, "context_s": context}))
"""


def first_steps() -> dict[str, Any]:
    """Time the first step of new processes: kernels compiled, then found on disk."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        places = {
            "STEPRULE_CACHE_DIR": folder,
            "TRITON_CACHE_DIR": folder + "/triton",
            "PYTHONPATH": str(Path(steprule.__file__).parents[1]),
        }
        for kind in ("cold", "warm"):
            done = subprocess.run(
                [sys.executable, "-c", _FIRST],
                env={**os.environ, **places},
                capture_output=True,
                text=True,
                timeout=120,
                check=False,
            )
            lines = done.stdout.strip().splitlines()
            found[kind] = json.loads(lines[-1]) if lines else {"error": done.stderr[-500:]}
    return found


def launches(device: torch.device) -> dict[str, Any]:
    """Time a launch by the driver's function and by Triton's own launcher."""
    from steprule.engines.gpu.programs import launching

    params = tensors([(64,)], device, torch.float32)
    optimizer: Any = steprule.Adam(params)
    optimizer.step()
    (part,) = optimizer._plan._parts
    runner = part.runner
    source = runner._source("update")
    slow = launching._just_in_time(source, "update")
    fast = runner._program("update")
    found = {}
    for name, program in (("driver", fast), ("triton", slow)):
        step = timed(lambda: program.launch(1, 1, 0, runner._tables))  # noqa: B023
        found[name] = 1e3 * step["host_ms"]
    return found
