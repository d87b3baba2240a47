"""Every scheduler with telling arguments, buildable from torch's module or from ours."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.optim.lr_scheduler as torch_schedulers
import torch.optim.swa_utils as torch_swa

import steprule
import steprule.lr_scheduler as our_schedulers
import steprule.swa_utils as our_swa

OURS: Any = our_schedulers
TORCH: Any = torch_schedulers
Build = Callable[..., Any]


def swalr(module: Any) -> Any:
    """SWALR lives in another module."""
    return our_swa.SWALR if module is OURS else torch_swa.SWALR


def halve_by_hundreds(epoch: int) -> float:
    """A named function, so that schedulers holding it can be pickled."""
    return 0.5 ** (epoch / 100)


def by_thirds(epoch: int) -> int:
    return epoch // 3


CASES: dict[str, Build] = {
    "LambdaLR": lambda m, o, **k: m.LambdaLR(
        o, [halve_by_hundreds, by_thirds, halve_by_hundreds], **k
    ),
    "MultiplicativeLR": lambda m, o, **k: m.MultiplicativeLR(o, halve_by_hundreds, **k),
    "StepLR": lambda m, o, **k: m.StepLR(o, 7, 0.5, **k),
    "MultiStepLR": lambda m, o, **k: m.MultiStepLR(o, [80, 10, 10], 0.5, **k),
    "MultiStepLR-from-0": lambda m, o, **k: m.MultiStepLR(o, [0, 30], 0.5, **k),
    "ConstantLR": lambda m, o, **k: m.ConstantLR(o, 0.4, 17, **k),
    "LinearLR": lambda m, o, **k: m.LinearLR(o, 0.3, 0.9, 50, **k),
    "ExponentialLR": lambda m, o, **k: m.ExponentialLR(o, 0.97, **k),
    "PolynomialLR": lambda m, o, **k: m.PolynomialLR(o, 200, 2.0, **k),
    "PolynomialLR-fraction": lambda m, o, **k: m.PolynomialLR(o, 5.5, 2.0, **k),
    "CosineAnnealingLR": lambda m, o, **k: m.CosineAnnealingLR(o, 60, 0.001, **k),
    "CosineAnnealingLR-to-0": lambda m, o, **k: m.CosineAnnealingLR(o, 90, **k),
    "CosineAnnealingWarmRestarts": lambda m, o, **k: m.CosineAnnealingWarmRestarts(
        o, 10, 2, 0.001, **k
    ),
    "CyclicLR": lambda m, o, **k: m.CyclicLR(o, [0.01, 0.02, 0.03], 1.0, 13, 9, **k),
    "CyclicLR-triangular2": lambda m, o, **k: m.CyclicLR(o, 0.01, 1.0, 13, mode="triangular2", **k),
    "CyclicLR-exp_range": lambda m, o, **k: m.CyclicLR(
        o, 0.01, 1.0, 13, mode="exp_range", gamma=0.99, **k
    ),
    "OneCycleLR": lambda m, o, **k: m.OneCycleLR(o, [1.0, 2.0, 3.0], total_steps=300, **k),
    "OneCycleLR-three": lambda m, o, **k: m.OneCycleLR(
        o, 1.0, epochs=30, steps_per_epoch=10, anneal_strategy="linear", three_phase=True, **k
    ),
    "SWALR": lambda m, o, **k: swalr(m)(o, [0.5, 0.6, 0.7], **k),
    "SWALR-at-once": lambda m, o, **k: swalr(m)(o, 0.5, anneal_epochs=0, **k),
}

# For these every lr is a closed form of the epoch and the initial lr.
PURE = [name for name in CASES if name != "MultiplicativeLR"]

COMPOSITES: dict[str, Build] = {
    "sequential": lambda m, o: m.SequentialLR(
        o, [m.LinearLR(o, total_iters=9), m.CosineAnnealingLR(o, 40)], [9]
    ),
    "sequential-of-three": lambda m, o: m.SequentialLR(
        o, [m.ConstantLR(o), m.OneCycleLR(o, 1.0, 100), m.ExponentialLR(o, 0.9)], [5, 30]
    ),
    "chained": lambda m, o: m.ChainedScheduler([m.ConstantLR(o, 0.1, 4), m.ExponentialLR(o, 0.95)]),
}

OPTIMIZERS: dict[str, Callable[..., Any]] = {
    "torch.SGD": torch.optim.SGD,
    "torch.Adam": torch.optim.Adam,
}
OPTIMIZERS |= {
    f"steprule.{name}": getattr(steprule, name)
    for name in ("SGD", "Adam")
    if hasattr(steprule, name)
}


def make_optimizer(kind: str = "torch.SGD", lrs: tuple[Any, ...] = (0.1, 0.2, 0.3)) -> Any:
    """An optimizer with one small parameter and one group for each lr."""
    options = {"momentum": 0.9} if kind.endswith("SGD") else {}
    return OPTIMIZERS[kind](
        [{"params": [torch.zeros(2, requires_grad=True)], "lr": lr} for lr in lrs],
        lr=0.1,
        **options,
    )


def in_force(optimizer: Any) -> list[float]:
    """All the numbers a scheduler sets, of all groups."""
    numbers: list[float] = []
    for group in optimizer.param_groups:
        numbers += [float(group["lr"]), float(group.get("momentum", 0))]
        numbers += map(float, group.get("betas", ()))
    return numbers


def run(optimizer: Any, scheduler: Any, steps: int) -> list[list[float]]:
    """What is in force at each of `steps` steps, in today's order of calls."""
    seen = []
    for _ in range(steps):
        seen.append(in_force(optimizer))
        optimizer.step()
        scheduler.step()
    return seen


def close(ours: list[float], theirs: list[float], tolerance: float = 1e-12) -> bool:
    return all(
        math.isclose(a, b, rel_tol=tolerance, abs_tol=1e-15)
        for a, b in zip(ours, theirs, strict=True)
    )
