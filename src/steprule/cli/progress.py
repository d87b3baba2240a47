"""How far a command has come, and how long it will take."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress:
    """One bar over many runs; nothing is shown where there is no terminal.

    Args:
        console: where to.
        runs: how many there will be.
    """

    def __init__(self, console: Console, runs: int) -> None:
        self.progress = Progress(
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left:"),
            TimeRemainingColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            disable=not sys.stdout.isatty(),
        )
        self.task = self.progress.add_task("", total=runs)
        self.shares: dict[object, float] = {}

    def __enter__(self) -> RunProgress:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def advance(self, run: object, share: float, text: str) -> None:
        """Say how much of a run is done, from 0 to 1, and what it is."""
        step = share - self.shares.get(run, 0.0)
        self.shares[run] = share
        self.progress.update(self.task, advance=step, description=text)
