"""`steprule plot`: look at schedules before training with them."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

if TYPE_CHECKING:
    from steprule.plotting import Curve

SUFFIXES = (".png", ".svg", ".pdf")


def plot(
    schedules: Annotated[
        list[str],
        typer.Argument(
            metavar="SCHEDULE...",
            help="A schedule, 'cosine(0.1, 0, steps=90).warmup(5)', or a scheduler, "
            "'StepLR:step_size=30,gamma=0.1'.",
        ),
    ],
    steps: Annotated[int, typer.Option(min=1, max=10_000_000, help="Steps to show.")] = 100,
    lr: Annotated[
        list[float] | None,
        typer.Option(
            help="Initial lr of a scheduler; repeated, of several groups.", show_default="0.1"
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a picture: .png, .svg or .pdf.", dir_okay=False),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Draw in the terminal, as without --out.")
    ] = False,
) -> None:
    """Draw schedules and schedulers over steps, to a picture or in the terminal."""
    from steprule import plotting

    if out is not None and out.suffix.lower() not in SUFFIXES:
        _refuse(f"--out: {out.name!r} must end in {', '.join(SUFFIXES)}")
    lines = []
    for number, written in enumerate(schedules, start=1):
        which = f"schedule {number}: " if len(schedules) > 1 else ""
        lines += _curves(written, lr or [0.1], steps, which)
    if out is not None:
        try:
            plotting.draw(lines).savefig(out)
        except (ImportError, OSError) as error:
            _refuse(f"--out: {error}")
        print(f"wrote {out}")
    if text or out is None:
        width = min(max(shutil.get_terminal_size((88, 24)).columns - 16, 20), 100)
        print(plotting.draw_text(lines, width=width))


def _curves(written: str, lrs: list[float], steps: int, which: str) -> list[Curve]:
    """Return the curves of one argument."""
    import numpy as np

    from steprule import plotting
    from steprule.lr_scheduler.parse import looks_like_scheduler, parse_scheduler
    from steprule.schedules import ParseError, parse

    label = written.strip()
    try:
        thing = parse_scheduler(label, lrs) if looks_like_scheduler(label) else parse(label)
        lines = plotting.curves(thing, steps, label=label)
    except ParseError as error:
        _refuse(f"{which}{error}")
    except ValueError as error:
        _refuse(f"{label}: {error}")
    for line in lines:
        if (wrong := np.flatnonzero(~np.isfinite(line.values))).size:
            _refuse(f"{label}: {line.values[wrong[0]]} at step {wrong[0]} cannot be drawn")
    return lines


def _refuse(message: str) -> NoReturn:
    """Print the message as it is, its mark under the right column, and end with code 2."""
    print(f"steprule: {message}", file=sys.stderr)
    raise typer.Exit(2)
