"""The time of zero_grad, in both its forms."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from steprule.bench.contenders import makers_of
from steprule.bench.results import Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Make as MakeOptimizer
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief
from steprule.bench.timing import Make, Timed, interleaved


def _jobs(settings: Settings) -> Iterator[Job]:
    for which in settings.sets:
        for subject in settings.few:
            for to_none in (True, False):

                def run(
                    which: ParamSet = which, subject: Subject = subject, to_none: bool = to_none
                ) -> list[Row]:
                    return [measure(subject, which, to_none, settings)]

                yield Job(f"zero_grad: {which.name}, {subject.label}", run)


def measure(subject: Subject, which: ParamSet, to_none: bool, settings: Settings) -> Row:
    """Return the row of one set in one of the two forms."""

    def clearing(make: MakeOptimizer, params: list[torch.Tensor]) -> Make:
        grads = [param.grad for param in params]

        def give_back() -> None:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad

        def ready() -> Timed:
            optimizer = make(params)
            clear = functools.partial(optimizer.zero_grad, set_to_none=to_none)
            return Timed(clear, before=give_back)

        return ready

    def contenders() -> dict[str, Make]:
        params = which.parameters()
        return {name: clearing(make, params) for name, make in makers_of(subject).items()}

    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    return Row(f"{which.name}, {'to None' if to_none else 'to 0'}", subject.label, readings)


ZERO_GRAD = Table(
    name="zero_grad",
    title="Time of zero_grad",
    case="set",
    about=(
        "'to None' is set_to_none=True, the default; gradients are put back between readings, "
        "untimed, and kept alive, so that freeing them is not timed."
    ),
    jobs=_jobs,
    write=brief,
)
