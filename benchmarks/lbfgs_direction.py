"""Time of LBFGS's direction at history 100, against torch.optim.LBFGS in the same process.

The objective costs next to nothing (a diagonal quadratic whose gradient is one product), so an
iteration is its direction: learning a pair, multiplying by H, moving. Both classes run 20 fixed
steps a call, with full histories, in rounds that alternate; the median and the least of the
rounds are printed, and how much memory the history takes.

    python benchmarks/lbfgs_direction.py [--rounds 7] [--sizes 10000 1000000]

The issue asks for 4 times at n = 10,000 and 1.5 times at n = 1,000,000.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from steprule.quasi_newton import LBFGS

ITERATIONS = 20
HISTORY = 100
CONTENDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "torch": (torch.optim.LBFGS, {}),
    "steprule": (LBFGS, {}),
    "steprule, bfloat16 history": (LBFGS, {"history_dtype": torch.bfloat16}),
}


def stepper(cls: Any, size: int, options: dict[str, Any]) -> Callable[[], None]:
    """A function that takes 20 iterations, its history already full."""
    torch.manual_seed(0)
    param = torch.nn.Parameter(torch.randn(size))
    weights = torch.logspace(-2, 0, size)
    param.grad = torch.zeros(size)
    # So short a step that the run neither converges nor stops within any number of rounds.
    optimizer = cls(
        [param],
        lr=1e-3,
        max_iter=ITERATIONS,
        max_eval=10 * ITERATIONS,
        tolerance_grad=0.0,
        tolerance_change=-1.0 if cls is torch.optim.LBFGS else 0.0,
        history_size=HISTORY,
        **options,
    )

    def closure() -> torch.Tensor:
        with torch.no_grad():
            torch.mul(weights, param, out=param.grad)
        return torch.ones(())

    def step() -> None:
        optimizer.step(closure)

    while not optimizer.state or len(optimizer.state[param]["old_dirs"]) < HISTORY:
        step()
    return step


def measure(size: int, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of an iteration, for each contender and round."""
    steps = {name: stepper(cls, size, options) for name, (cls, options) in CONTENDERS.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for k in range(rounds + 1):
        for name, step in steps.items():
            before = time.perf_counter()
            step()
            if k:  # the first round warms caches
                times[name].append((time.perf_counter() - before) / ITERATIONS * 1e3)
    return times


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000, 1_000_000])
    args = parser.parse_args()
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {platform.machine()}, {threads} threads; ms an iteration")
    print(f"{'n':>9}  {'':28}{'median':>9}{'least':>9}{'times torch':>13}{'history':>11}")
    for size in args.sizes:
        times = measure(size, args.rounds)
        base = statistics.median(times["torch"])
        for name, values in times.items():
            median = statistics.median(values)
            width = 2 if "bfloat16" in name else 4
            print(
                f"{size:>9}  {name:28}{median:9.3f}{min(values):9.3f}{base / median:12.2f}x"
                f"{2 * HISTORY * size * width / 2**20:8.1f} MB"
            )


if __name__ == "__main__":
    main()
