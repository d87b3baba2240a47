"""The options of `steprule compare`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from steprule.cli.numbers import positive_number, whole_number


def compare_command(
    problem: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]",
            help="A function of yours that makes model, loss and data: my_module:make_problem or "
            "path/to/file.py; --template prints one.",
            show_default="a small network on handwritten digits",
        ),
    ] = None,
    optimizers: Annotated[
        str | None,
        typer.Option(
            help="Names joined by commas, or 'all'. 'torch:adam' is torch's own class; "
            "'adam@eager' asks for one engine; 'sgd+momentum=0.9+nesterov' gives options.",
            show_default="a few well-known ones",
        ),
    ] = None,
    lr: Annotated[
        list[str] | None,
        typer.Option(help="NAME=VALUE (may be repeated), or one VALUE for all."),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 1_000_000),
            metavar="N",
            help="Passes over the data.",
            show_default="20, or 500 steps of a problem of your own",
        ),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 2**31), metavar="N", help="Steps a run, in place of --epochs."
        ),
    ] = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            parser=positive_number,
            metavar="S",
            help="Seconds of training a run, in place of --epochs.",
        ),
    ] = None,
    batch_size: Annotated[
        int,
        typer.Option(
            parser=whole_number(1, 2**31),
            metavar="N",
            help="Rows a step, where the data are rows and not batches already.",
        ),
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(
            parser=whole_number(0, 2**63 - 1), metavar="N", help="Of weights and batches."
        ),
    ] = 0,
    seeds: Annotated[
        int,
        typer.Option(
            parser=whole_number(1, 1000),
            metavar="N",
            help="Seeds from --seed on; ranks are by the median over them.",
        ),
    ] = 1,
    schedule: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="Of the lr, its peak scaled to each optimizer's: "
            "'cosine(1, 0, steps=450).warmup(50)' or 'StepLR:step_size=100'.",
        ),
    ] = None,
    search: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 100_000),
            metavar="N",
            help="First search lr and weight decay, N trials an optimizer (needs Optuna); kept in "
            "the report's folder, so that a second call goes on.",
        ),
    ] = None,
    lr_sweep: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 1000),
            metavar="N",
            help="First train with N learning rates, to show how sensitive each optimizer is.",
        ),
    ] = None,
    threads: Annotated[
        int,
        typer.Option(
            parser=whole_number(1, 1024),
            metavar="N",
            help="torch's threads; more than one only pays on larger data.",
        ),
    ] = 1,
    engine: Annotated[str, typer.Option(help="The engine of steprule's optimizers.")] = "auto",
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npz",
            help="Arrays x (n, features) and y (n,), optionally x_test and y_test; "
            "by default scikit-learn's handwritten digits.",
        ),
    ] = None,
    report: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the report and its plots go.")
    ] = Path("steprule-report"),
    template: Annotated[
        bool,
        typer.Option(
            "--template", help="Print a file with a problem to start from, and do no more."
        ),
    ] = False,
) -> None:
    """Train one model with several optimizers side by side and write a report."""
    if template:
        from steprule.cli.templates import problem_template

        print(problem_template(), end="")
        return
    from steprule.cli.compare import Request, compare

    compare(
        Request(
            optimizers=optimizers,
            lr=tuple(lr or ()),
            epochs=epochs,
            batch_size=batch_size,
            seed=seed,
            threads=threads,
            engine=engine,
            data=data,
            report=report,
            problem=problem,
            steps=steps,
            seconds=seconds,
            seeds=seeds,
            schedule=schedule,
            search=search,
            lr_sweep=lr_sweep,
        )
    )
