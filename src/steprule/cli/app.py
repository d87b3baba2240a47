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
from steprule.bench.sets import SETS
from steprule.bench.tables import TABLES
from steprule.cli.compare_command import compare_command
from steprule.cli.errors import CommandError
from steprule.cli.numbers import whole_number
from steprule.problems import ProblemError

_SETS = "; ".join(f"{name}: {one.about}" for name, one in SETS.items())
#: What a command that was given nothing might have been given.
_EXAMPLES = {
    "formula": "adamw --text",
    "memory": "4096x4096",
    "plot": '"cosine(0.1, 0, steps=90).warmup(5)" --text',
}

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
        return _refuse(format_message() + _example(error)) if format_message() else 2
    if code == 130:
        print("steprule: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def _example(error: Exception) -> str:
    """Return a call that works, for an argument that was left out."""
    name = getattr(getattr(error, "ctx", None), "info_name", None)
    if type(error).__name__ != "MissingParameter" or name not in _EXAMPLES:
        return ""
    return f" For example: steprule {name} {_EXAMPLES[name]}"


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


app.command("compare")(compare_command)


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
            help=f"{', '.join(TABLES)}, joined by commas, or 'all'. One takes from a minute to "
            "a quarter of an hour."
        ),
    ] = "steps",
    sets: Annotated[
        str, typer.Option(help=f"Sets of parameters, joined by commas, or 'all': {_SETS}.")
    ] = ",".join(SETS),
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


@app.command("formula")
def formula_command(
    optimizer: Annotated[
        str, typer.Argument(help="A name as in `steprule list`, or with options: adam+cautious.")
    ],
    options: Annotated[
        str | None,
        typer.Option(metavar="NAME=VALUE,...", help="Options of the optimizer: amsgrad=true."),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            metavar="64x32",
            help="The parameter's shape, on which some depend: 64x32, 64, scalar.",
            show_default="a matrix",
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="For reading in a terminal, instead of LaTeX.")
    ] = False,
) -> None:
    """Print the update of an optimizer as mathematics, read off its recorded rule."""
    from steprule.cli.formula import print_formula

    print_formula(optimizer, options, shape, as_text=text)


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


@app.command("doctor")
def doctor_command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> int:
    """Check that this installation works; paste what it prints into bug reports."""
    from steprule.doctor.command import doctor

    return doctor(as_json=as_json)


if find_spec("steprule.cli.plot") is not None:
    app.command("plot")(import_module("steprule.cli.plot").plot)
if find_spec("steprule.cli.find_lr") is not None:
    app.command("find-lr")(import_module("steprule.cli.find_lr").find_lr)
