"""Steps with state in formats and parameters of 16 bits, beside torch's on the same parameters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from steprule.bench.contenders import stepping
from steprule.bench.results import OURS, Row
from steprule.bench.sets import ParamSet
from steprule.bench.settings import Settings
from steprule.bench.subjects import Subject
from steprule.bench.tables.table import Job, Table, brief
from steprule.bench.timing import Make, interleaved

# The choices: the parameters' dtype, how they are rounded, and the state's format.
CHOICES: Sequence[tuple[torch.dtype, str, str]] = (
    *((torch.float32, "nearest", name) for name in ("param", "bfloat16", "int8", "int4")),
    (torch.bfloat16, "nearest", "param"),
    (torch.bfloat16, "stochastic", "param"),
    (torch.bfloat16, "kahan", "param"),
    (torch.bfloat16, "split", "param"),
    (torch.bfloat16, "split", "int8"),
    (torch.bfloat16, "split24", "int8"),
    (torch.bfloat16, "split24", "int4"),
)


def _jobs(settings: Settings) -> Iterator[Job]:
    large = [which for which in settings.sets if which.at_limit]
    for which in large or settings.sets:
        for subject in settings.few:
            for choice in CHOICES:

                def run(
                    which: ParamSet = which,
                    subject: Subject = subject,
                    choice: tuple[torch.dtype, str, str] = choice,
                ) -> list[Row]:
                    return [measure(subject, which, choice, settings)]

                yield Job(f"formats: {which.name}, {subject.label}, {_words(choice)}", run)


def measure(
    subject: Subject, which: ParamSet, choice: tuple[torch.dtype, str, str], settings: Settings
) -> Row:
    """Return the row of one choice of formats."""
    dtype, rounding, state_format = choice
    options: dict[str, Any] = {
        **subject.options,
        "param_rounding": rounding,
        "state_format": state_format,
    }

    def parameters() -> list[torch.Tensor]:
        made = []
        for like in which.parameters():
            param = like.detach().to(dtype).requires_grad_()
            param.grad = None if like.grad is None else like.grad.to(dtype)
            made.append(param)
        return made

    def ours(params: Any) -> torch.optim.Optimizer:
        make: Any = subject.cls
        made: torch.optim.Optimizer = make(params, **options)
        return made

    def contenders() -> dict[str, Make]:
        params = parameters()
        makers = {OURS: ours, **subject.modes()}
        return {name: stepping(make, params) for name, make in makers.items()}

    shapes = [torch.empty(shape, dtype=dtype, device="meta") for shape in which.shapes]
    sized: Any = ours([shape.requires_grad_() for shape in shapes])
    sized.init_state()
    facts = {"state": sized.state_bytes().per_param}
    readings = interleaved(contenders, rounds=settings.rounds, repeats=which.repeats)
    return Row(f"{which.name}, {_words(choice)}", subject.label, readings, facts)


def _words(choice: tuple[torch.dtype, str, str]) -> str:
    dtype, rounding, state_format = choice
    weights = str(dtype).removeprefix("torch.")
    return f"{weights} weights, {rounding}, {state_format} state"


def _bytes(count: float) -> str:
    return f"{count:.2f} B"


FORMATS = Table(
    name="formats",
    title="Steps with storage formats",
    case="set",
    about=(
        "Ours with state_format and param_rounding, torch's on parameters and gradients of the "
        "same dtype, which has its state in that dtype. 'state' is what each parameter takes of "
        "ours."
    ),
    jobs=_jobs,
    write=brief,
    facts={"state": _bytes},
)
