"""Memory LBFGS takes, measured beside its formula (for lbfgs_solve.py).

Each contender runs in a process of its own until its history is full and its oldest pairs are
being overwritten; measured is by how much the process's largest resident memory grew. The formula
is that of docs/lbfgs.md.
"""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from steprule.quasi_newton import LBFGS

STATUS = Path("/proc/self/status")
SIZE, HISTORY, ITERATIONS = 500_000, 100, 20
CONTENDERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "torch": (torch.optim.LBFGS, {}),
    "steprule": (LBFGS, {}),
    "steprule, bfloat16 history": (LBFGS, {"history_dtype": torch.bfloat16}),
}


def run(cls: Any, size: int, options: dict[str, Any]) -> None:
    """Fill the history, and go on for two steps, on a quadratic whose closure allocates nothing."""
    param = torch.nn.Parameter(torch.ones(size))
    weights = torch.logspace(-2, 0, size)
    param.grad = torch.zeros(size)
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

    for _ in range(HISTORY // ITERATIONS + 2):
        optimizer.step(closure)


def resident(key: str) -> int:
    """Bytes of this process now (VmRSS) or at their most (VmHWM)."""
    (line,) = (line for line in STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def growth(name: str) -> int:
    """Bytes by which a full run makes this process grow."""
    torch.set_num_threads(1)
    cls, options = CONTENDERS[name]
    run(cls, SIZE // 5, options)  # what is loaded or compiled on the way is not counted
    before = resident("VmRSS")
    run(cls, SIZE, options)
    return resident("VmHWM") - before - 3 * 4 * SIZE  # less parameter, gradient, weights


def measured() -> dict[str, int]:
    """The growth of each contender, in a process of its own; empty where there is no /proc."""
    if not STATUS.exists():
        return {}
    # Every tensor in pages of its own, given back when freed: no gaps in the heap are counted.
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    found = {}
    for name in CONTENDERS:
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            found[name] = pool.apply(growth, (name,))
    return found


def formula(options: dict[str, Any]) -> int:
    """Bytes by docs/lbfgs.md: the history, the pairs a failing closure gets back, ten vectors."""
    width = options.get("history_dtype", torch.float32).itemsize
    pairs = HISTORY + min(HISTORY, ITERATIONS)
    return 2 * pairs * SIZE * width + 10 * SIZE * 4


def table(found: dict[str, int]) -> Table:
    """Megabytes, and as a share of torch's."""
    shown = Table(
        "", "measured MB", "formula MB", "of torch's",
        title=f"Memory: {SIZE:,} float32 values, history {HISTORY}, {ITERATIONS} iterations a step",
    )  # fmt: skip
    for name, bytes_used in found.items():
        options = CONTENDERS[name][1]
        expected = "" if name == "torch" else f"{formula(options) / 2**20:.0f}"
        share = f"{bytes_used / found['torch']:.2f}"
        shown.add_row(name, f"{bytes_used / 2**20:.0f}", expected, share)
    return shown
