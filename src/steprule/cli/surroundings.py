"""Where a command runs: its console, torch's threads, the folder it writes to."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console

from steprule.cli.errors import CommandError


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Give torch `count` threads within the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def console(plain_width: int) -> Console:
    """Return the terminal, or a plain one of this width where no terminal sets one."""
    return Console() if sys.stdout.isatty() else Console(width=plain_width)


def make_folder(option: str, folder: Path) -> None:
    """Make `folder`, or say that what `option` asks for cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise CommandError(
            f"{option} {folder}: {error.strerror}; expected a folder that can be written to"
        ) from error
