"""What script/matrix asks of an environment: are the native loops on, and ratios of small steps.

python benchmarks/compatibility.py            whether the loops are on, or why not
python benchmarks/compatibility.py ratios     torch's best mode over ours, for Adam and RAdam
"""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable

import torch

import steprule
from steprule.engines.native.loops import enable_native, is_native_enabled
from steprule.engines.native.switch import why_off

SHAPES = [(30, 30)] * 1000
ROUNDS = 40


def stepper(make: Callable[..., torch.optim.Optimizer]) -> Callable[[], None]:
    """Return a function that takes a step over a thousand small tensors."""
    params = [torch.randn(shape, requires_grad=True) for shape in SHAPES]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = make(params, lr=1e-6)
    for _ in range(20):
        optimizer.step()
    return optimizer.step  # type: ignore[return-value]


def ratio(name: str) -> float:
    """Return the time of torch's best mode over ours; each is timed in turn, the least counts."""
    theirs = getattr(torch.optim, name)
    modes = [{}, {"foreach": True}, {"foreach": False}, {"fused": True}]
    steps = [stepper(getattr(steprule, name))]
    known = inspect.signature(theirs).parameters
    possible = [mode for mode in modes if all(option in known for option in mode)]
    steps += [stepper(functools.partial(theirs, **mode)) for mode in possible]
    best = [float("inf")] * len(steps)
    for _ in range(ROUNDS):
        for i, step in enumerate(steps):
            start = time.perf_counter()
            step()
            best[i] = min(best[i], time.perf_counter() - start)
    return min(best[1:]) / best[0]


if __name__ == "__main__":
    enable_native()
    if "ratios" in sys.argv:
        print(f"{ratio('Adam'):.1f} | {ratio('RAdam'):.1f}")
    else:
        print("on" if is_native_enabled() else f"off: {why_off()}")
