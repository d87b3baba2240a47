"""`steprule find-lr`: the learning-rate range test of an optimizer on a problem."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steprule.cli.errors import CommandError
from steprule.cli.numbers import positive_number, whole_number

if TYPE_CHECKING:
    from rich.console import Console

    from steprule.range_test.result import LRRangeTest
    from steprule.range_test.sweep import Sweep

SUFFIXES = (".png", ".svg", ".pdf")
PLAIN_WIDTH = 100


def find_lr(
    problem: Annotated[
        str | None,
        typer.Argument(
            metavar="[MODULE:FUNCTION]",
            help="What makes the problem, as for `steprule compare`.",
            show_default="a small network on handwritten digits",
        ),
    ] = None,
    optimizer: Annotated[
        str,
        typer.Option(
            help="A name as in `steprule list`, with options: sgd+momentum=0.9; 'torch:adam' is "
            "torch's own class, 'sam:sgd' is wrapped."
        ),
    ] = "adamw",
    lr_min: Annotated[
        float, typer.Option(parser=positive_number, metavar="LR", help="First lr.")
    ] = 1e-7,
    lr_max: Annotated[
        float, typer.Option(parser=positive_number, metavar="LR", help="Last lr.")
    ] = 10.0,
    steps: Annotated[
        int,
        typer.Option(parser=whole_number(5, 1_000_000), metavar="N", help="Steps, a batch each."),
    ] = 100,
    batch_size: Annotated[
        int,
        typer.Option(
            parser=whole_number(1, 2**31), metavar="N", help="Rows a step, of data that are rows."
        ),
    ] = 64,
    seed: Annotated[
        int,
        typer.Option(
            parser=whole_number(0, 2**63 - 1), metavar="N", help="Of weights and batches."
        ),
    ] = 0,
    engine: Annotated[str, typer.Option(help="The engine of steprule's optimizers.")] = "auto",
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a picture: .png, .svg or .pdf.", dir_okay=False),
    ] = None,
) -> None:
    """Find a learning rate: train at a rising one, and see where the loss falls fastest."""

    from steprule.cli.contenders import parse_contenders
    from steprule.cli.data import load
    from steprule.cli.surroundings import console as console_of
    from steprule.problems import load_problem
    from steprule.problems.loading import seeded
    from steprule.range_test.range_test import checked_sweep

    if out is not None and out.suffix.lower() not in SUFFIXES:
        raise CommandError(f"--out: {out.name!r} must end in {', '.join(SUFFIXES)}")
    if lr_max <= lr_min:
        raise CommandError(f"--lr-max must be above --lr-min, got {lr_max:g} and {lr_min:g}")
    try:
        contenders, _ = parse_contenders(optimizer, (), engine)
    except CommandError as error:  # of `steprule compare`, which takes several
        raise CommandError(str(error).replace("--optimizers", "--optimizer")) from None
    if len(contenders) != 1:
        raise CommandError(f"--optimizer: one at a time, got {optimizer!r}")
    found = load(None).problem(seed) if problem is None else load_problem(problem, seed)
    console = console_of(PLAIN_WIDTH)
    with seeded(seed):
        try:
            sweep = checked_sweep(
                found.model,
                contenders[0].build(found.model),
                found.value,
                found.batches(batch_size, seed),
                lr_min=lr_min,
                lr_max=lr_max,
                steps=steps,
                smoothing=0.05,
                diverged_at=4.0,
            )
        except (TypeError, ValueError) as error:
            raise CommandError(str(error)) from error
        console.print(f"{found.name}, {contenders[0].label}", markup=False, highlight=False)
        is_whole = _swept(sweep, console)
    if not sweep.losses and is_whole:
        raise CommandError(f"{found.name}: no step could be taken: {sweep.stopped}")
    _show(sweep.result(), console, out)
    if not is_whole:
        raise typer.Exit(130)


def _swept(sweep: Sweep, console: Console) -> bool:
    """Carry out a sweep; tell whether it was not interrupted."""
    from steprule.cli.progress import RunProgress

    with RunProgress(console, 1) as progress:

        def on_step(lr: float, loss: float) -> None:
            share = len(sweep.losses) / sweep.steps
            progress.advance("sweep", share, f"lr {lr:.1e}, loss {loss:.4g}")

        try:
            sweep.run(on_step)
        except KeyboardInterrupt:
            return False
        except (RuntimeError, TypeError, NotImplementedError) as error:
            raise CommandError(f"{type(sweep.optimizer).__name__}: {error}") from error
    return True


def _show(found: LRRangeTest, console: Console, out: Path | None) -> None:
    import numpy as np

    from steprule.plotting import Curve, draw_text

    def say(text: Any) -> None:
        console.print(str(text), markup=False, highlight=False, soft_wrap=True)

    if len(found.smoothed) > 1:
        say(draw_text([Curve("smoothed loss, by step of the sweep", np.array(found.smoothed))]))
    say(found)
    if out is None:
        return
    try:
        found.plot(out)
    except (ImportError, OSError) as error:
        raise CommandError(f"--out: {error}") from error
    say(f"wrote {out}")
