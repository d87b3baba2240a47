"""Steps in odd circumstances, where caches of plans and addresses might lose what they won."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

import torch

import steprule
from steprule.bench.contenders import makers_of
from steprule.bench.results import OURS, Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Make as MakeOptimizer
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief
from steprule.bench.timing import Make, Timed, interleaved

Params = list[torch.Tensor]
OPTIMIZERS_AT_ONCE = 4


def _half_on_foreach(_: str, make: MakeOptimizer, params: Params) -> Timed:
    half = len(params) // 2
    optimizer = make(params[:half])
    flags = {"foreach": True, "fused": None} if "fused" in optimizer.defaults else {"foreach": True}
    optimizer.add_param_group({"params": params[half:], **flags})
    optimizer.step()
    return Timed(optimizer.step)


def _moving_gradients(_: str, make: MakeOptimizer, params: Params) -> Timed:
    optimizer = make(params)
    optimizer.step()

    def move() -> None:
        for param in params:
            assert param.grad is not None
            param.grad = param.grad.clone()

    return Timed(optimizer.step, before=move)


def _several_optimizers(_: str, make: MakeOptimizer, params: Params) -> Timed:
    count = min(OPTIMIZERS_AT_ONCE, len(params))
    optimizers = [make(params[index::count]) for index in range(count)]

    def step_all() -> None:
        for optimizer in optimizers:
            optimizer.step()

    step_all()
    return Timed(step_all)


def _changing_lr(name: str, make: MakeOptimizer, params: Params) -> Timed:
    optimizer = make(params)
    module = steprule.lr_scheduler if name == OURS else torch.optim.lr_scheduler
    scheduler = module.LambdaLR(optimizer, lambda step: 1.0 if step % 2 else 0.5)

    def step() -> None:
        optimizer.step()
        scheduler.step()

    step()
    return Timed(step)


CASES: Mapping[str, Callable[[str, MakeOptimizer, Params], Timed]] = {
    "half the tensors in a group on foreach": _half_on_foreach,
    "gradients move every step": _moving_gradients,
    f"{OPTIMIZERS_AT_ONCE} optimizers in turn": _several_optimizers,
    "lr changed every step by LambdaLR": _changing_lr,
}


def _jobs(settings: Settings) -> Iterator[Job]:
    for which in settings.sets:
        for case in CASES:
            for subject in settings.few:

                def run(
                    which: ParamSet = which, case: str = case, subject: Subject = subject
                ) -> list[Row]:
                    return [measure(subject, which, case, settings)]

                yield Job(f"mixes: {which.name}, {case}, {subject.label}", run)


def measure(subject: Subject, which: ParamSet, case: str, settings: Settings) -> Row:
    """Return the row of one optimizer in one of `CASES`."""

    def contenders() -> dict[str, Make]:
        params = which.parameters()
        return {
            name: functools.partial(CASES[case], name, make, params)
            for name, make in makers_of(subject).items()
        }

    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    return Row(f"{which.name}: {case}", subject.label, readings)


MIXES = Table(
    name="mixes",
    title="Steps in odd circumstances",
    case="set and circumstance",
    about=(
        "Gradients are moved untimed. With LambdaLR the scheduler's step is timed too, ours beside "
        "our optimizer and torch's beside torch's. In the mixed groups, torch's modes are those of "
        "the other half."
    ),
    jobs=_jobs,
    write=brief,
)
