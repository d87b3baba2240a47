"""Time of a step on a large table with a sparse gradient, beside torch.

    python benchmarks/sparse_rows.py [--table 1000000 64] [--rows 1000] [--rounds 15]

The cost must go with the gradient's rows and not with the table's: a table ten times smaller is
timed as well. Printed: medians in milliseconds and the ratio torch / ours.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch

from steprule.rules import OPTIMIZERS

NAMES = ("SGD", "Adagrad", "SparseAdam")


def seconds(optimizer: torch.optim.Optimizer, weight: torch.Tensor, grad: torch.Tensor) -> float:
    """One step with a gradient that has not been coalesced yet."""
    weight.grad = torch.sparse_coo_tensor(grad._indices(), grad._values(), grad.shape)
    start = time.perf_counter()
    optimizer.step()
    return time.perf_counter() - start


def measure(name: str, table: tuple[int, int], rows: int, rounds: int) -> dict[str, float]:
    """Median seconds of ours and torch's."""
    generator = torch.Generator().manual_seed(0)
    indices = torch.randint(table[0], (1, rows), generator=generator)
    grad = torch.sparse_coo_tensor(indices, torch.randn(rows, table[1], generator=generator), table)
    runs: dict[str, Any] = {}
    for who, cls in (("ours", OPTIMIZERS[name.lower()]), ("torch", getattr(torch.optim, name))):
        weight = torch.zeros(table, requires_grad=True)
        runs[who] = (cls([weight]), weight, [])
    for _ in range(rounds + 2):
        for optimizer, weight, readings in runs.values():
            readings.append(seconds(optimizer, weight, grad))
    return {who: statistics.median(run[2][2:]) for who, run in runs.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--table", nargs=2, type=int, default=(1_000_000, 64))
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.sparse.check_sparse_tensor_invariants.disable()
    print(f"{'table':>14} {'optimizer':12} {'ours':>8} {'torch':>8} {'ratio':>6}")
    for size in (arguments.table[0] // 10, arguments.table[0]):
        table = (size, arguments.table[1])
        for name in NAMES:
            median = measure(name, table, arguments.rows, arguments.rounds)
            print(
                f"{size:>9}x{table[1]:<4} {name:12} {median['ours'] * 1e3:8.3f} "
                f"{median['torch'] * 1e3:8.3f} {median['torch'] / median['ours']:6.2f}"
            )


if __name__ == "__main__":
    main()
