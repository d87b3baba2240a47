"""What a step of the engine for devices costs the host, measured without a card.

    python benchmarks/gpu/host.py

Tensors are on the CPU and launches do nothing, so that what is left is the host's work: gradients
looked at, numbers prepared and copied to the tables. On a card come a launch by the driver (about 3
us) and an asynchronous copy in place of a plain one. Beside it, torch's fused step of the same
tensors on the CPU, where it is one loop in C++: on a card torch adds 2 us a tensor.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import triton  # noqa: F401  # before it is told to interpret

os.environ["TRITON_INTERPRET"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "src"))

import torch

import steprule
from steprule.engines.gpu import probe, runner

SETS = {
    "the article's network": [(200, 784), (200,), (10, 200), (10,)],
    "1000 tensors of 1024": [(32, 32)] * 1000,
    "10,000 tensors of 16": [(16,)] * 10000,
}


class Nothing:
    """A kernel that is not launched."""

    def launch(self, *_: Any) -> None:
        """Do nothing."""


def microseconds(step: Callable[[], Any], before: Callable[[int], Any]) -> float:
    """The median time of a step, after something that is not timed."""
    times = []
    for k in range(160):
        before(k)
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    return 1e6 * sorted(times[40:])[60]


def timed(shapes: Any, make: Callable[[Any], Any], *, renews: bool = False) -> float:
    """The time of a step over tensors of these shapes, with the same gradients or others."""
    params = [torch.zeros(shape).requires_grad_() for shape in shapes]
    grads = [[torch.zeros(shape) for shape in shapes] for _ in range(2)]
    optimizer = make(params)

    def give(k: int) -> None:
        if k == 0 or renews:
            for param, grad in zip(params, grads[k % 2], strict=True):
                param.grad = grad

    return microseconds(optimizer.step, give)


def main() -> None:
    """Print a table."""
    runner.program_for = lambda *_: Nothing()
    probe.why_not_usable = lambda _: None  # type: ignore[assignment]

    def ours(params: Any, **options: Any) -> Any:
        return steprule.Adam(params, engine="triton", **options)

    heads = ("the host's part", "with new gradients", "with clipping", "torch fused, on the CPU")
    print("| | " + " | ".join(heads) + " |\n" + "|---" * (len(heads) + 1) + "|")
    for title, shapes in SETS.items():
        cells = [
            timed(shapes, ours),
            timed(shapes, ours, renews=True),
            timed(shapes, lambda params: ours(params, clip_grad_norm=1.0)),
            timed(shapes, lambda params: torch.optim.Adam(params, fused=True)),
        ]
        print(f"| {title} | " + " | ".join(f"{cell:.0f} us" for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
