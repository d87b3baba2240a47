"""`steprule warm`: compile ahead of time what optimizers need at their first step."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from steprule.cli.errors import CommandError
from steprule.cli.options import split_outside_brackets, value_of
from steprule.warming import Job, Warmed, jobs_for, run_jobs


def warm(
    optimizers: Sequence[str], dtypes: str, options: Sequence[str], target: str | None = None
) -> Warmed:
    """Compile and print what came of it.

    Args:
        optimizers: names; none for all.
        dtypes: names joined by commas.
        options: sets of `NAME=VALUE`, joined by commas.
        target: a card, as `cuda:90`; by default this machine's processor.

    Raises:
        CommandError: something unknown, or a folder that cannot be written to.
    """
    if options and not optimizers:
        raise CommandError("--options: name the optimizers that have them (steprule warm sgd ...)")
    variants = [parse_options(text) for text in options]
    began = time.perf_counter()
    try:
        kinds = [d.strip().lower() for d in dtypes.split(",")]
        jobs = jobs_for(optimizers, kinds, variants, target)
        is_shown = sys.stdout.isatty() and find_spec("rich") is not None
        warmed = run_jobs(_shown(jobs) if is_shown else jobs)
    except (TypeError, ValueError, OSError) as error:
        raise CommandError(str(error)) from error
    print(f"{warmed} ({time.perf_counter() - began:.1f} s)")
    return warmed


def _shown(jobs: Sequence[Job]) -> Iterator[Job]:
    """Return the jobs, each while a progress bar says which it is."""
    # Of the extra, without which this command is of use: in an image that trains.
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    progress = Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        transient=True,
    )
    with progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.label)
            yield job
            progress.advance(task)


def parse_options(text: str) -> dict[str, Any]:
    """Return `momentum=0.9,nesterov=true,betas=(0.9,0.99)` as a dict.

    Raises:
        CommandError: it has not this form.
    """
    found: dict[str, Any] = {}
    for part in split_outside_brackets(text, ","):
        name, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not name.isidentifier():
            raise CommandError(f"--options {text}: expected NAME=VALUE, got {part.strip()!r}")
        if name in found:
            raise CommandError(f"--options {text}: {name} is given twice")
        found[name] = value_of(value)
    return found
