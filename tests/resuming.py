"""Runs that are cut in two: saved in one process, gone on with in another.

Run as ``python resuming.py FOLDER`` it resumes every case from its file there and writes where each
has come to.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import conftest  # noqa: F401  # has Triton's interpreter run kernels, in either process
import torch
from helpers import HAS_TRITON, engines_of, takes_every_combination
from torch import Tensor

import steprule
from steprule import lr_scheduler as m
from steprule.rules import OPTIMIZERS
from steprule.schedules import parse

HALF, WHOLE = 2, 4


def has_betas(optimizer: Any) -> bool:
    """Whether there is something to cycle against the lr."""
    return "betas" in optimizer.defaults


FORMATS: list[tuple[torch.dtype, dict[str, Any]]] = [
    (torch.float32, {}),
    (torch.float64, {}),
    (torch.bfloat16, {"state_format": "float32", "param_rounding": "stochastic"}),
    (torch.bfloat16, {"state_format": "int8", "param_rounding": "split24"}),
    (torch.float16, {"state_format": "bfloat16", "param_rounding": "kahan"}),
    (torch.float32, {"state_format": "int4"}),
]
SCHEDULES: dict[str, Any] = {
    name: functools.partial(parse, text)
    for name, text in {
        "joined": "linear(0, 0.1, steps=2).then(cosine(0.1, 0.01, steps=9), at=3).warmup(1)",
        "restarts": "cosine_restarts(0.1, 0.01, steps=2, cycle_mult=2).clip(0.02, 0.09)",
        "cycles": "cyclic(0.01, 0.1, up=2) * constant(0.5)",
        "one": "one_cycle(0.1, steps=9)",
        "pieces": "piecewise({0: 0.1, 3: 0.01}).repeat(5)",
        "points": "from_points([(0, 0.0), (3, 0.1)])",
        "polynomial": "polynomial(0.1, 0.01, steps=9, power=2)",
        "exponential": "exponential(0.1, 0.9) * step_decay(1, 0.5, every=2)",
        "inverse": "inverse_sqrt(0.1, warmup=2)",
        "wsd": "wsd(0.1, warmup=1, stable=2, decay=3)",
    }.items()
}
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "ChainedScheduler": lambda o: m.ChainedScheduler(
        [m.ConstantLR(o, 0.5, 3), m.MultiStepLR(o, [1, 3], 0.5)]
    ),
    "ConstantLR": lambda o: m.ConstantLR(o, 0.5, 3),
    "CosineAnnealingLR": lambda o: m.CosineAnnealingLR(o, 8),
    "CosineAnnealingWarmRestarts": lambda o: m.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: m.CyclicLR(o, 0.01, 0.1, 3, cycle_momentum=False),
    "ExponentialLR": lambda o: m.ExponentialLR(o, 0.9),
    "LambdaLR": lambda o: m.LambdaLR(o, lambda epoch: 0.9**epoch),
    "LinearLR": lambda o: m.LinearLR(o, 0.3, total_iters=6),
    "MultiStepLR": lambda o: m.MultiStepLR(o, [1, 3, 3], 0.5),
    "MultiplicativeLR": lambda o: m.MultiplicativeLR(o, lambda epoch: 0.9),
    "OneCycleLR": lambda o: m.OneCycleLR(o, 0.1, total_steps=20, cycle_momentum=has_betas(o)),
    "PolynomialLR": lambda o: m.PolynomialLR(o, 9, 2.0),
    "ReduceLROnPlateau": lambda o: m.ReduceLROnPlateau(o, patience=0),
    "SWALR": lambda o: steprule.swa_utils.SWALR(o, 0.5, 5),
    "SequentialLR": lambda o: m.SequentialLR(
        o, [m.StepLR(o, 1, 0.9), m.CosineAnnealingLR(o, 9)], [2]
    ),
    "StepLR": lambda o: m.StepLR(o, 2, 0.5),
}


class Resumed(NamedTuple):
    """One run: an optimizer, how it stores, what drives its lr, and the engine."""

    name: str
    format: int
    driver: str
    engine: str

    @property
    def text(self) -> str:
        return "-".join(map(str, self))


def cases() -> list[Resumed]:
    """Every optimizer with every format on every engine, and with every driver of its lr.

    Those that need not take all of these take some, by turns.
    """
    drivers = ["none", *SCHEDULES, *SCHEDULERS]
    found, turn = [], 0
    for cls in OPTIMIZERS.values():
        if cls.needs_closure:
            found += [Resumed(cls.__name__, f, "none", "auto") for f in (0, 1)]
            continue
        engines = engines_of(cls.__name__) if cls.rule is not None else ("auto",)
        formats = [*range(2 if cls.needs_sparse else len(FORMATS))]
        chosen = drivers[1:]
        if not hasattr(torch.optim, cls.__name__):
            turn += 1
            chosen = chosen[turn % 3 :: 3]
        if not takes_every_combination(cls.__name__):
            formats = [0, 1 + turn % (len(FORMATS) - 1)]
        found += [Resumed(cls.__name__, f, "none", e) for f in formats for e in engines]
        found += [Resumed(cls.__name__, 0, driver, "auto") for driver in chosen]
    if HAS_TRITON:  # interpreted, so that a few must do
        found += [Resumed("Adam", f, "none", "triton") for f in (0, 3)]
    return found


class Run:
    """A case's parameters, optimizer and scheduler, at its beginning."""

    def __init__(self, case: Resumed, seed: int = 0) -> None:
        cls = OPTIMIZERS[case.name.lower()]
        self.dtype, options = FORMATS[case.format]
        generator = torch.Generator().manual_seed(seed)
        shapes = {"a": (4, 6), "b": (80, 70)} | ({} if cls.only_2d else {"c": (5,)})
        self.params = {
            name: torch.randn(shape, generator=generator).to(self.dtype).requires_grad_()
            for name, shape in shapes.items()
        }
        if case.driver in SCHEDULES:
            options = {**options, "lr": SCHEDULES[case.driver]()}
        engine = {} if case.engine == "auto" else {"engine": case.engine}
        self.optimizer: Any = cls(list(self.params.items()), **options, **engine)
        self.scheduler: Any = None
        if case.driver in SCHEDULERS:
            self.scheduler = SCHEDULERS[case.driver](self.optimizer)

    def steps(self, begin: int, end: int) -> None:
        for step in range(begin, end):
            self._set_gradients(step)
            if self.optimizer.needs_closure:
                self.optimizer.step(self._closure)
            else:
                self.optimizer.step()
            if isinstance(self.scheduler, m.ReduceLROnPlateau):
                self.scheduler.step(1.0)
            elif self.scheduler is not None:
                self.scheduler.step()

    def _set_gradients(self, step: int) -> None:
        generator = torch.Generator().manual_seed(100 + step)
        for param in self.params.values():
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            param.grad = grad.to_sparse(1) if self.optimizer.needs_sparse else grad

    def _closure(self) -> Tensor:
        for param in self.params.values():
            param.grad = None
        loss = torch.stack([(p**4 + p**2).sum() for p in self.params.values()]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    @property
    def model(self) -> torch.nn.ParameterDict:
        return torch.nn.ParameterDict(
            {n: torch.nn.Parameter(p, requires_grad=False) for n, p in self.params.items()}
        )

    def outcome(self) -> dict[str, Any]:
        return {
            "params": {n: p.detach() for n, p in self.params.items()},
            "optimizer": self.optimizer.state_dict(),
            "lr": [float(group["lr"]) for group in self.optimizer.param_groups],
        }


def parts_of(runs: dict[str, Run]) -> dict[str, Any]:
    """Return what is saved of runs, and loaded into them: all in one file."""
    return {
        "model": {text: run.model for text, run in runs.items()},
        "optimizer": {text: run.optimizer for text, run in runs.items()},
        "schedulers": {text: run.scheduler for text, run in runs.items() if run.scheduler},
    }


def resumed(chosen: Iterable[Resumed], file: Path) -> dict[str, Run]:
    """Return the second halves of runs, from their file."""
    runs = {case.text: Run(case, seed=1) for case in chosen}
    steprule.load_training(file, **parts_of(runs))
    for run in runs.values():
        run.steps(HALF, WHOLE)
    return runs


if __name__ == "__main__":
    where = Path(sys.argv[1])
    ends = resumed(cases(), where / "runs")
    steprule.save_training(
        where / "outcomes", extra={text: run.outcome() for text, run in ends.items()}
    )
