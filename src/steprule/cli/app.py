"""The commands of `steprule`, their options, and what happens when one fails."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

import steprule
from steprule.cli.errors import CommandError
from steprule.cli.numbers import positive_number, whole_number
from steprule.problems import ProblemError

app = typer.Typer(
    name="steprule",
    help="Optimizers and learning-rate schedules for PyTorch.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def run(arguments: Sequence[str]) -> int:
    """Run one command line; a refused request becomes one line on stderr and exit code 2."""
    try:
        code = app(list(arguments), prog_name="steprule", standalone_mode=False)
    except (CommandError, ProblemError) as error:
        return _refuse(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        # Typer's usage errors come from click or from typer's own copy of it, by version.
        format_message = getattr(error, "format_message", None)
        if format_message is None:
            raise
        return _refuse(format_message()) if format_message() else 2
    if code == 130:
        print("steprule: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _refuse(message: str) -> int:
    print(f"steprule: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _print_version(asked: bool) -> None:
    if asked:
        print(f"steprule {steprule.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Optimizers and learning-rate schedules for PyTorch."""


@app.command("compare")
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


@app.command("bench")
def bench_command(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER]...",
            help="Names such as adam or sgd+momentum; all by default, one where a table's "
            "figures hardly depend on the rule.",
        ),
    ] = None,
    tables: Annotated[
        str,
        typer.Option(
            help="steps, epoch, startup, memory, zero_grad, mixes, scaling, joined by commas, "
            "or 'all'."
        ),
    ] = "steps",
    sets: Annotated[
        str, typer.Option(help="Sets of parameters, joined by commas, or 'all'.")
    ] = "large,small,mlp,tiny",
    rounds: Annotated[
        int,
        typer.Option(
            parser=whole_number(1, 100_000), metavar="N", help="Readings of each contender."
        ),
    ] = 15,
    peers: Annotated[
        str,
        typer.Option(
            help="compile, optax, deepspeed, joined by commas, 'all' or 'none': others' steps in "
            "the table of steps, where installed. They may compile for minutes."
        ),
    ] = "none",
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole_number(1, 1024),
            metavar="N",
            help="torch's threads, and so steprule's.",
            show_default="torch's own choice",
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write all raw readings.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write a page and its plots.")
    ] = None,
) -> None:
    """Measure what a step costs on this machine, beside torch's modes and other libraries."""
    from steprule.bench.run import Request, bench

    bench(
        Request(
            optimizers=tuple(optimizers or ()),
            tables=tables,
            sets=sets,
            rounds=rounds,
            peers=peers,
            threads=threads,
            json=json,
            report=report,
        )
    )


@app.command("list")
def list_command() -> None:
    """List the optimizers and their defaults."""
    from steprule.cli.listing import print_optimizers

    print_optimizers()


@app.command("memory")
def memory_command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Shapes (4096x4096,32*4096), a safetensors file, or module:function that makes "
            "a model.",
        ),
    ],
    optimizer: Annotated[str, typer.Option(help="A name as in `steprule list`.")] = "adamw",
    dtype: Annotated[
        str | None, typer.Option(help="Of the parameters.", show_default="their own")
    ] = None,
    options: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE,...", help="Options of the optimizer: momentum=0.9."),
    ] = None,
) -> None:
    """Print the bytes that weights, state and gradients take for each choice of formats."""
    from steprule.cli.memory import print_memory

    print_memory(sources, optimizer, dtype, options)


@app.command("warm")
def warm_command(
    optimizers: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[OPTIMIZER]...", help="Names as in `steprule list`.", show_default="all"
        ),
    ] = None,
    dtypes: Annotated[
        str, typer.Option(help="Of the parameters, joined by commas: float32,bfloat16…")
    ] = "float32",
    options: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=VALUE,...",
            help="Options to compile for (may be repeated), as momentum=0.9,nesterov=true.",
            show_default="the common combinations",
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            metavar="CARD",
            help="Compile for a card, which need not be there: cuda:90 for an H100 (needs triton).",
            show_default="this processor",
        ),
    ] = None,
) -> None:
    """Compile ahead of time what optimizers need at their first step, for containers."""
    from steprule.cli.warm import warm

    warm(optimizers or (), dtypes, options or (), target)


if find_spec("steprule.cli.plot") is not None:
    app.command("plot")(import_module("steprule.cli.plot").plot)
if find_spec("steprule.cli.find_lr") is not None:
    app.command("find-lr")(import_module("steprule.cli.find_lr").find_lr)
