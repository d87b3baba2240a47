"""`steprule bench`: measure, show, record."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich import box
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table as RichTable

from steprule.bench.choices import chosen
from steprule.bench.grid import cells, columns, footnote
from steprule.bench.machine import machine
from steprule.bench.pages import write_page
from steprule.bench.peers import PEERS
from steprule.bench.record import Measured, check_file, write_record
from steprule.bench.results import Row
from steprule.bench.sets import SETS
from steprule.bench.settings import Settings
from steprule.bench.subjects import fullest, subjects
from steprule.bench.tables import TABLES, Job, Table
from steprule.cli import page
from steprule.cli.surroundings import console as console_of
from steprule.cli.surroundings import make_folder, threads

# Where no terminal sets a width, a row of a table stays one line.
PLAIN_WIDTH = 200


@dataclass(frozen=True)
class Request:
    """The options of the command, as typed but for the numbers, which are checked."""

    optimizers: tuple[str, ...]
    tables: str
    sets: str
    rounds: int
    peers: str
    threads: int | None
    json: Path | None
    report: Path | None

    def command(self) -> str:
        """Return a command line that repeats this run."""
        words = ["steprule", "bench", *self.optimizers, "--tables", self.tables]
        words += ["--sets", self.sets, "--rounds", str(self.rounds), "--peers", self.peers]
        if self.threads is not None:
            words += ["--threads", str(self.threads)]
        return shlex.join(words)


def bench(request: Request) -> list[tuple[Table, list[Row]]]:
    """Do what `request` asks: print the tables, write file and page, return the rows.

    Raises:
        CommandError: for anything that cannot be done, before anything is measured where possible.
    """
    tables = [TABLES[name] for name in chosen("--tables", [request.tables], TABLES)]
    settings = _settings(request)
    if request.report is not None:
        make_folder("--report", request.report)
    if request.json is not None:
        check_file(request.json)

    console = console_of(PLAIN_WIDTH)
    facts = {**page.versions(), **_peer_versions(settings), **machine()}
    facts["threads"] = str(settings.threads)
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()), highlight=False)
    measured: list[tuple[Table, list[Row]]] = []
    with threads(settings.threads), _progress(console) as progress:
        jobs = [(table, list(table.jobs(settings))) for table in tables]
        task = progress.add_task("", total=sum(len(of_table) for _, of_table in jobs))
        for table, of_table in jobs:
            measured.append((table, _measured(of_table, progress, task)))
            _show(console, *measured[-1])
            if request.json is not None:  # after each table: a long run may be interrupted
                write_record(request.json, measured, settings, facts, request.command())
    for note in settings.notes:
        console.print(f"Note: {note}", markup=False, highlight=False)
    _write(request, console, measured, settings, facts)
    return measured


def _settings(request: Request) -> Settings:
    known = subjects()
    named = chosen("optimizers", request.optimizers or ("all",), known)
    sets = chosen("--sets", [request.sets], SETS)
    peers = chosen("--peers", [request.peers], PEERS, words=("all", "none"))
    found = [PEERS[name] for name in peers if not PEERS[name].missing()]
    everyone = not request.optimizers or tuple(request.optimizers) == ("all",)
    settings = Settings(
        subjects=[known[label] for label in named],
        few=[known[label] for label in ([fullest(named)] if everyone else named)],
        sets=[SETS[name] for name in sets],
        rounds=request.rounds,
        threads=torch.get_num_threads() if request.threads is None else request.threads,
        peers=found,
    )
    for name in peers:
        missing = PEERS[name].missing()
        settings.say(missing or f"{name}: {PEERS[name].comparable}")
    return settings


def _peer_versions(settings: Settings) -> dict[str, str]:
    return {name: version for peer in settings.peers for name, version in peer.versions().items()}


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not sys.stdout.isatty(),
        transient=True,
        auto_refresh=False,  # its thread would take the interpreter from what is being timed
    )


def _measured(jobs: Sequence[Job], progress: Progress, task: TaskID) -> list[Row]:
    rows: list[Row] = []
    for job in jobs:
        if progress.disable:  # no terminal: a line for each is the only sign of life
            sys.stderr.write(f"steprule bench: {job.what}\n")
        progress.update(task, description=job.what, refresh=True)
        rows += job.run()
        progress.advance(task)
    return rows


def _show(console: Console, table: Table, rows: Sequence[Row]) -> None:
    shown = RichTable(
        title=table.title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for index, column in enumerate(columns(table, rows)):
        shown.add_column(column, justify="right" if index > 1 else "left", overflow="fold")
    for row in rows:
        shown.add_row(*cells(table, row, rows))
    console.print(shown)
    console.print(footnote(table, rows), markup=False, highlight=False)
    console.print()


def _write(
    request: Request,
    console: Console,
    measured: Measured,
    settings: Settings,
    facts: dict[str, str],
) -> None:
    if request.json is not None:
        write_record(request.json, measured, settings, facts, request.command())
        console.print(f"JSON:   {request.json}", markup=False, highlight=False, soft_wrap=True)
    if request.report is not None:
        path, images = write_page(request.report, measured, settings, facts, request.command())
        console.print(f"Report: {path}", markup=False, highlight=False, soft_wrap=True)
        plots = ", ".join(image.name for image in images)
        console.print(f"Plots:  {plots} beside it", markup=False, highlight=False, soft_wrap=True)
