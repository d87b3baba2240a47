"""Steps that clip by the gradients' norm: within our step, and by torch's function before its."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from steprule.bench.contenders import stepping
from steprule.bench.results import OURS, Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Make as MakeOptimizer
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief, times
from steprule.bench.timing import Make, Timed, interleaved

# The gradients of all sets have a larger norm than this.
BOUND = 0.05
PLAIN = "plain"


def _jobs(settings: Settings) -> Iterator[Job]:
    for which in settings.sets:
        for subject in settings.few:

            def run(which: ParamSet = which, subject: Subject = subject) -> list[Row]:
                return [measure(subject, which, settings)]

            yield Job(f"clipping: {which.name}, {subject.label}", run)


def measure(subject: Subject, which: ParamSet, settings: Settings) -> Row:
    """Return the row of one optimizer on one set."""

    def clipping_before(make: MakeOptimizer, params: list[torch.Tensor]) -> Make:
        def ready() -> Timed:
            optimizer = make(params)

            def step() -> None:
                torch.nn.utils.clip_grad_norm_(params, BOUND)
                optimizer.step()

            step()
            return Timed(step)

        return ready

    def clipping_within(params: list[torch.Tensor]) -> Make:
        options = {**subject.options, "clip_grad_norm": BOUND, "on_nonfinite": "skip"}
        return stepping(lambda given: subject.cls(given, **options), params)

    def contenders() -> dict[str, Make]:
        # torch's function writes the gradients: each contender has its own.
        makers = {
            mode: clipping_before(make, which.parameters())
            for mode, make in subject.modes().items()
        }
        params = which.parameters()
        return {
            OURS: clipping_within(params),
            PLAIN: stepping(subject.ours, params),
            **makers,
        }

    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    others = {PLAIN: readings.pop(PLAIN)}
    row = Row(which.name, subject.label, readings)
    plain = Row(which.name, subject.label, {OURS: others[PLAIN]})
    facts = {"of plain": row.median() / plain.median()}
    return Row(which.name, subject.label, readings, facts, others)


CLIPPING = Table(
    name="clipping",
    title="Steps that clip by norm",
    case="set",
    about=(
        "Ours with clip_grad_norm and on_nonfinite='skip', torch's with "
        "torch.nn.utils.clip_grad_norm_ before the step. 'of plain' is our time over that of our "
        "step without guards."
    ),
    jobs=_jobs,
    write=brief,
    facts={"of plain": times},
)
