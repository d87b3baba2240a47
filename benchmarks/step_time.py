"""Time of ``step()`` against the best mode torch has, side by side in one process.

    python benchmarks/step_time.py                      every optimizer, every set
    python benchmarks/step_time.py adam sgd --sets mlp --rounds 30 --json out.json

Each round times every contender once, in turn, so that whatever else the machine does falls on
all of them. All step the same parameters and gradients, each with state of its own; the state is
made anew, in another order, for each of several trials, because where memory happens to lie can
make the same kernel half again as fast. Printed: the median of each mode in milliseconds, and the
ratio best torch mode / ours (above 1: ours is faster). torch's modes are its plain loop, foreach,
and fused where it has a fused kernel for the CPU. Gradients stay where they are between steps, as
with ``zero_grad(set_to_none=False)``; ``--fresh-grads`` moves them before every step.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import steprule
from steprule.rules import OPTIMIZERS

SETS: dict[str, list[tuple[int, ...]]] = {
    "large": [(2_000_000,)] * 10,
    "small": [(64, 64)] * 500 + [(64,)] * 500,
    "mlp": [(200, 784), (200,), (10, 200), (10,)],
}
# Steps in a row that are timed as one, so that a reading is far above the clock's grain.
REPEATS = {"large": 1, "small": 3, "mlp": 50}
TRIALS = 4
OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {"sgd+momentum": ("sgd", {"momentum": 0.9})}


def contenders() -> list[str]:
    """Optimizers that take dense gradients element by element, from the registry."""
    names = [
        name
        for name, cls in OPTIMIZERS.items()
        if cls.rule is not None and cls.rule.elementwise and cls.rule.sparse != "only"
    ]
    return [*names, *OPTIONS]


def parameters(shapes: list[tuple[int, ...]]) -> list[torch.Tensor]:
    """Parameters with gradients, the same every time."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator) * 1e-2
    return params


def optimizers_of(
    label: str, params: list[torch.Tensor], trial: int
) -> dict[str, torch.optim.Optimizer]:
    """Ours and each of torch's modes, with their state made, in an order that turns by trial."""
    name, options = OPTIONS.get(label, (label, {}))
    cls = OPTIMIZERS[name]
    twin = getattr(torch.optim, cls.__name__)
    modes: list[tuple[str, Any, dict[str, bool]]] = [
        ("ours", cls, {}),
        ("loop", twin, {"foreach": False}),
        ("foreach", twin, {"foreach": True}),
        ("fused", twin, {"fused": True}),
    ]
    made: dict[str, torch.optim.Optimizer] = {}
    for i in range(len(modes)):
        mode, make, flags = modes[(i + trial) % len(modes)]
        try:
            made[mode] = make(params, **options, **flags)
        except TypeError:  # torch has no such mode for it
            continue
        made[mode].step()
    return made


def move_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What backward() after zero_grad() does: gradients in new memory."""
    for group in optimizer.param_groups:
        for param in group["params"]:
            param.grad = param.grad.clone()


def measure(label: str, which: str, rounds: int, *, fresh: bool) -> dict[str, list[float]]:
    """Seconds of a step, for each contender and round."""
    readings: dict[str, list[float]] = {}
    for trial in range(TRIALS):
        made = optimizers_of(label, parameters(SETS[which]), trial)
        for round_index in range(-(-rounds // TRIALS) + 1):
            for mode, optimizer in made.items():
                seconds = timed(optimizer, REPEATS[which], fresh=fresh)
                if round_index:  # the first round of a trial warms the caches
                    readings.setdefault(mode, []).append(seconds)
    return readings


def timed(optimizer: torch.optim.Optimizer, repeats: int, *, fresh: bool) -> float:
    """Seconds a step, over several in a row."""
    total = 0.0
    step: Callable[[], Any] = optimizer.step
    if not fresh:
        start = time.perf_counter()
        for _ in range(repeats):
            step()
        return (time.perf_counter() - start) / repeats
    for _ in range(repeats):
        move_gradients(optimizer)
        start = time.perf_counter()
        step()
        total += time.perf_counter() - start
    return total / repeats


def versions() -> dict[str, str]:
    """What the figures depend on."""
    return {
        "steprule": steprule.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": str(torch.get_num_threads()),
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("optimizers", nargs="*", help=f"any of {', '.join(contenders())}")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--fresh-grads", action="store_true")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.optimizers) - set(contenders()))
    if unknown:
        parser.error(f"unknown {', '.join(unknown)}; choose from {', '.join(contenders())}")
    print(" ".join(f"{k} {v}" for k, v in versions().items()))
    header = ("set", "optimizer", "ours", "loop", "foreach", "fused", "ratio", "spread of ours")
    print("{:6} {:14} {:>9} {:>9} {:>9} {:>9} {:>6}  {}".format(*header))
    results: dict[str, Any] = {"versions": versions(), "seconds": {}}
    for which in arguments.sets:
        for label in arguments.optimizers or contenders():
            readings = measure(label, which, arguments.rounds, fresh=arguments.fresh_grads)
            results["seconds"][f"{which}/{label}"] = readings
            medians = {mode: statistics.median(v) for mode, v in readings.items()}
            ratio = min(v for mode, v in medians.items() if mode != "ours") / medians["ours"]
            cells = [
                f"{medians[m] * 1e3:9.3f}" if m in medians else f"{'-':>9}"
                for m in ("ours", "loop", "foreach", "fused")
            ]
            spread = f"{min(readings['ours']) * 1e3:.3f} to {max(readings['ours']) * 1e3:.3f}"
            print(f"{which:6} {label:14} {' '.join(cells)} {ratio:6.2f}  {spread}")
            sys.stdout.flush()
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
