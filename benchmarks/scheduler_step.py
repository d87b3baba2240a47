"""Cost of scheduler.step() with 100 groups: steprule beside torch, interleaved in one process.

    python benchmarks/scheduler_step.py [--groups 100] [--rounds 40] [--steps 50]

Each round times a burst of steps of both, one after the other, so that both see the same machine;
the best burst of each counts. Prints microseconds a step and the ratio, which should stay at or
below 0.5.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch.optim import SGD, Optimizer, lr_scheduler, swa_utils

import steprule.lr_scheduler
import steprule.swa_utils

torch_schedulers: Any = lr_scheduler


def swalr(module: Any) -> Any:
    """SWALR lives in another module."""
    return swa_utils.SWALR if module is torch_schedulers else steprule.swa_utils.SWALR


BUILDERS: dict[str, Callable[[Any, Optimizer], Any]] = {
    "LambdaLR": lambda m, o: m.LambdaLR(o, lambda epoch: 0.999**epoch),
    "MultiplicativeLR": lambda m, o: m.MultiplicativeLR(o, lambda epoch: 1 - 1e-6 * epoch),
    "StepLR": lambda m, o: m.StepLR(o, 30),
    "MultiStepLR": lambda m, o: m.MultiStepLR(o, [30, 80]),
    "ConstantLR": lambda m, o: m.ConstantLR(o),
    "LinearLR": lambda m, o: m.LinearLR(o, total_iters=10_000),
    "ExponentialLR": lambda m, o: m.ExponentialLR(o, 0.999),
    "PolynomialLR": lambda m, o: m.PolynomialLR(o, 10_000),
    "CosineAnnealingLR": lambda m, o: m.CosineAnnealingLR(o, 10_000),
    "CosineAnnealingWarmRestarts": lambda m, o: m.CosineAnnealingWarmRestarts(o, 100),
    "CyclicLR": lambda m, o: m.CyclicLR(o, 0.1, 1.0, 20),
    "OneCycleLR": lambda m, o: m.OneCycleLR(o, 0.1, 1_000_000),
    "SWALR": lambda m, o: swalr(m)(o, 0.05, anneal_epochs=10_000),
    "SequentialLR": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, total_iters=10), m.CosineAnnealingLR(o, 10_000)], [10]
    ),
    "ChainedScheduler": lambda m, o: m.ChainedScheduler(
        [m.ConstantLR(o), m.ExponentialLR(o, 0.999)]
    ),
}


def optimizer(groups: int) -> Optimizer:
    """SGD with momentum and `groups` groups of different lr."""
    return SGD(
        [
            {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1 + 0.001 * index}
            for index in range(groups)
        ],
        momentum=0.9,
    )


def burst(scheduler: Any, steps: int) -> float:
    """Seconds a step, over one burst."""
    begin = time.perf_counter()
    for _ in range(steps):
        scheduler.step()
    return (time.perf_counter() - begin) / steps


def measure(name: str, groups: int, rounds: int, steps: int) -> tuple[float, float]:
    """Best seconds a step of steprule and of torch."""
    both: list[tuple[ModuleType, Any]] = [
        (steprule.lr_scheduler, None),
        (torch_schedulers, None),
    ]
    schedulers = []
    for module, _ in both:
        driven = optimizer(groups)
        schedulers.append(BUILDERS[name](module, driven))
        driven.step()
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for index, scheduler in enumerate(schedulers):
            best[index] = min(best[index], burst(scheduler, steps))
    return best[0], best[1]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=50)
    options = parser.parse_args()
    print(f"python {platform.python_version()}, torch {torch.__version__}, {options.groups} groups")
    print(f"{'class':28} {'steprule us':>12} {'torch us':>10} {'ratio':>6}")
    worst = 0.0
    for name in BUILDERS:
        ours, theirs = measure(name, options.groups, options.rounds, options.steps)
        worst = max(worst, ours / theirs)
        print(f"{name:28} {ours * 1e6:12.1f} {theirs * 1e6:10.1f} {ours / theirs:6.2f}")
    print(f"worst ratio {worst:.2f}")


if __name__ == "__main__":
    main()
