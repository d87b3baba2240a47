"""What optimizers are compared on, and how that is put in words."""

from __future__ import annotations

from steprule.cli.data import load
from steprule.cli.errors import CommandError
from steprule.cli.page import size
from steprule.cli.request import Request
from steprule.cli.training import Settings
from steprule.problems import Maker, Problem, maker_of
from steprule.problems.classifier import HIDDEN


def problem_of(request: Request) -> tuple[Maker, list[str]]:
    """Return what makes the problem, and what it is in words."""
    if request.problem is not None:
        if request.data is not None:
            raise CommandError(
                f"--data {request.data}: {request.problem} brings data of its own; give one of them"
            )
        return maker_of(request.problem), [request.problem]
    data = load(request.data)
    rows = f"{data.name}, {len(data.x)} training and {len(data.x_test)} test rows"
    shape = f"network {data.x.shape[1]}-{HIDDEN}-{data.classes}, ReLU, cross-entropy"
    return data.problem, [rows, shape]


def training_of(request: Request, settings: Settings, problem: Problem) -> list[str]:
    """Return for how long, on what batches and seeds and at what lr, in words."""
    rows = len(problem.data[0]) if isinstance(problem.data, tuple) else None
    batches = "" if rows is None else f" in batches of {min(request.batch_size, rows)}"
    last = request.all_seeds[-1]
    seeds = f"seed {last}" if request.seeds == 1 else f"seeds {request.seed} to {last}"
    text = [f"{settings.budget}{batches}, {seeds}"]
    if settings.schedule is not None:
        text.append(f"lr by {settings.schedule.text}, its peak each optimizer's lr")
    return text


def conditions_of(request: Request, problem: Problem) -> dict[str, str]:
    """Return what stands below a report: seeds, threads, the size of the model."""
    last = request.all_seeds[-1]
    params = sum(param.numel() for param in problem.model.parameters())
    weights = sum(param.nbytes for param in problem.model.parameters())
    return {
        "seed": str(request.seed) if request.seeds == 1 else f"{request.seed} to {last}",
        "threads": str(request.threads),
        "parameters": f"{params:,}",
        "weights": size(weights),
    }
