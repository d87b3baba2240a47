"""Time of Adam's step after its gradients have been zero for long, beside torch.

    python benchmarks/zero_gradients.py [--steps 1500]

The running average then decays into numbers below float32's normal range, on which processors
are many times slower. Printed: medians in milliseconds of steps with live gradients and of steps
after the zeros, and the ratio of the two.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import steprule


def median_of(step: Callable[[], Any], rounds: int = 21) -> float:
    """Median seconds of a call."""
    readings = []
    for _ in range(rounds):
        start = time.perf_counter()
        step()
        readings.append(time.perf_counter() - start)
    return statistics.median(readings)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1500)
    steps = parser.parse_args().steps
    contenders: dict[str, Any] = {
        "ours": steprule.Adam,
        "torch fused": lambda params: torch.optim.Adam(params, fused=True),
        "torch foreach": lambda params: torch.optim.Adam(params, foreach=True),
    }
    print(f"{'':14} {'live':>8} {'zero':>8} {'ratio':>6}")
    for who, make in contenders.items():
        param = torch.randn(1_000_000, requires_grad=True)
        optimizer = make([param])
        param.grad = torch.randn_like(param)
        optimizer.step()
        live = median_of(optimizer.step)
        param.grad = torch.zeros_like(param)
        for _ in range(steps):
            optimizer.step()
        zero = median_of(optimizer.step)
        print(f"{who:14} {live * 1e3:8.3f} {zero * 1e3:8.3f} {zero / live:6.2f}")


if __name__ == "__main__":
    main()
