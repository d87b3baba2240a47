"""`steprule compare`: train, show, report."""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from steprule.cli import report
from steprule.cli.contenders import Contender, parse_contenders
from steprule.cli.data import Dataset, load
from steprule.cli.surroundings import console as console_of
from steprule.cli.surroundings import make_folder, threads
from steprule.cli.training import HIDDEN, Run, train

# Where no terminal sets a width, a row of the table stays one line.
PLAIN_WIDTH = 120
SHOWN_ELSEWHERE = frozenset({"lr", "engine", "foreach", "fused"})


@dataclass(frozen=True)
class Request:
    """The options of the command, as typed but for the numbers, which are checked."""

    optimizers: str | None
    lr: tuple[str, ...]
    epochs: int
    batch_size: int
    seed: int
    threads: int
    engine: str
    data: Path | None
    report: Path

    def command(self, contenders: list[Contender]) -> str:
        """Return a command line that repeats this comparison, defaults spelled out."""
        words = ["steprule", "compare", "--optimizers", ",".join(one.label for one in contenders)]
        for rate in self.lr:
            words += ["--lr", rate]
        words += ["--epochs", str(self.epochs), "--batch-size", str(self.batch_size)]
        words += ["--seed", str(self.seed), "--threads", str(self.threads)]
        words += ["--engine", self.engine]
        if self.data is not None:
            words += ["--data", str(self.data)]
        return shlex.join(words)


def compare(request: Request) -> list[Run]:
    """Do what `request` asks: print the table, write the report, return the runs.

    Raises:
        CommandError: for anything that cannot be done, before any training where possible.
    """
    console = console_of(PLAIN_WIDTH)
    contenders, notes = parse_contenders(request.optimizers, request.lr, request.engine)
    data = load(request.data)
    make_folder("--report", request.report)

    subtitle = (
        f"{data.name}, {len(data.x)} training and {len(data.x_test)} test rows; "
        f"network {data.x.shape[1]}-{HIDDEN}-{data.classes}, ReLU, cross-entropy; "
        f"{request.epochs} epochs in batches of {min(request.batch_size, len(data.x))}, "
        f"seed {request.seed}"
    )
    for line in subtitle.split("; "):
        console.print(line, markup=False, highlight=False)
    with threads(request.threads):
        runs = _train(request, contenders, data, console)
    notes += _notes(runs)
    console.print(_table(runs))
    for note in notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
    page, images = report.write(
        request.report,
        runs,
        report.Summary(
            subtitle=subtitle,
            command=request.command(contenders),
            notes=notes,
            conditions={"seed": str(request.seed), "threads": str(request.threads)},
        ),
    )
    console.print(f"Report: {page}", markup=False, highlight=False, soft_wrap=True)
    plots = ", ".join(image.name for image in images)
    console.print(f"Plots:  {plots} beside it", markup=False, highlight=False, soft_wrap=True)
    return runs


def _train(
    request: Request, contenders: list[Contender], data: Dataset, console: Console
) -> list[Run]:
    steps = request.epochs * -(-len(data.x) // request.batch_size)
    progress = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.1%}"),
        TimeElapsedColumn(),
        console=console,
        disable=not sys.stdout.isatty(),
    )
    with progress:
        tasks = {
            one.label: progress.add_task(one.label, total=steps, loss=0.0, accuracy=0.0)
            for one in contenders
        }

        def on_step(run: Run) -> None:
            progress.update(
                tasks[run.label],
                completed=len(run.step_seconds),
                loss=run.losses[-1],
                accuracy=run.accuracies[-1],
            )

        return train(
            contenders,
            data,
            epochs=request.epochs,
            batch_size=request.batch_size,
            seed=request.seed,
            on_step=on_step,
        )


def _notes(runs: list[Run]) -> list[str]:
    notes = []
    for run in runs:
        options = run.contender.options.items()
        shown = [f"{key}={value}" for key, value in options if key not in SHOWN_ELSEWHERE]
        if shown:
            notes.append(f"{run.label} runs with {', '.join(shown)}.")
        if run.contender.only_2d:
            notes.append(f"{run.label} takes matrices only; the biases stay as they began.")
        if run.contender.needs_closure:
            notes.append(
                f"{run.label} evaluates the loss itself, several times a step; "
                "its step() time leaves those evaluations out."
            )
    return notes


def _table(runs: list[Run]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for index, column in enumerate(report.COLUMNS):
        table.add_column(
            column, justify="right" if index else "left", overflow="fold", no_wrap=index == 0
        )
    for run in runs:
        table.add_row(*report.row(run))
    return table
