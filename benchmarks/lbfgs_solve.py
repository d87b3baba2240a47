"""What LBFGS solves and in how many evaluations, beside SciPy's L-BFGS-B and torch's LBFGS.

    python benchmarks/lbfgs_solve.py                        all three parts, about four minutes
    python benchmarks/lbfgs_solve.py --parts set --history 10 --json out.json

Parts: ``set``, the More-Garbow-Hillstrom problems, ill-conditioned quadratics and objectives that
are nan beyond an edge (lbfgs_set.py); ``training``, loss against evaluations on three models
(lbfgs_training.py); ``memory``, bytes measured beside the formula (lbfgs_memory.py).

The issue asks that ``more_thuente`` solve at least as many as SciPy with at most 1.2 times its
evaluations (median), all that torch solves and more, and that losses be not above torch's.
"""

from __future__ import annotations

import argparse
import json
import platform
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lbfgs_memory
import lbfgs_set
import lbfgs_training
import scipy
import torch
from rich.console import Console

import steprule

PARTS = ("set", "training", "memory")
VERSIONS = {
    "steprule": steprule.__version__,
    "torch": torch.__version__,
    "scipy": scipy.__version__,
    "machine": platform.machine(),
}


def problem_set(console: Console, history: int) -> dict[str, Any]:
    """Solve the set; print evaluations and what each method missed of what torch solved."""
    outcomes = lbfgs_set.run_set(history)
    console.print(lbfgs_set.table(outcomes, history))
    summary = lbfgs_set.summary(outcomes)
    for method, found in summary.items():
        if found["missed"]:
            console.print(f"{method} missed, and torch solved: {', '.join(found['missed'])}")
    problems = {
        name: {method: asdict(one) for method, one in by.items()} for name, by in outcomes.items()
    }
    return {"history": history, "summary": summary, "problems": problems}


def training(console: Console, seeds: int) -> dict[str, Any]:
    """Train the models; print the losses."""
    found = {}
    for task in lbfgs_training.TASKS:
        found[task] = lbfgs_training.run_task(task, seeds)
        console.print(lbfgs_training.table(task, found[task]))
    return found


def memory(console: Console) -> dict[str, int]:
    """Measure memory; print it."""
    found = lbfgs_memory.measured()
    console.print(lbfgs_memory.table(found) if found else "memory is measured on Linux only")
    return found


def main() -> None:
    """Run the parts asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--history", type=int, default=100, help="pairs, for the set")
    parser.add_argument("--seeds", type=int, default=20, help="runs of each model")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=140)
    console.print(" ".join(f"{key} {value}" for key, value in VERSIONS.items()))
    results: dict[str, Any] = {"versions": VERSIONS}
    if "set" in arguments.parts:
        results["set"] = problem_set(console, arguments.history)
    if "training" in arguments.parts:
        results["training"] = training(console, arguments.seeds)
    if "memory" in arguments.parts:
        results["memory"] = memory(console)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
