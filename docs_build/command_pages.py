"""The command line's page: each command's options, as ``--help`` has them."""

from __future__ import annotations

import re
from typing import Any

import typer

from docs_build.file_pages import fenced
from steprule.cli.app import app


def files() -> dict[str, str | bytes]:
    """Return the page."""
    group: Any = typer.main.get_command(app)
    parts = [
        "# Command line",
        "`steprule COMMAND --help` prints the same. The command line is an extra: "
        "`pip install '.[cli]'`.",
    ]
    for name, command in sorted(group.commands.items()):
        if not command.hidden:
            parts += [f"## steprule {name}", *_parts_of(name, command)]
    return {"reference/command_line.md": "\n\n".join(parts) + "\n"}


def _parts_of(name: str, command: Any) -> list[str]:
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [_prose(command.help or ""), fenced(f"steprule {name} {usage}", "text")]
    records = [parameter.get_help_record(context) for parameter in command.params]
    rows = [f"| {_code(record[0])} | {_prose(record[1])} |" for record in records if record]
    if rows:
        parts.append("\n".join(["| argument | |", "|---|---|", *rows]))
    return parts


def _code(names: str) -> str:
    """Return an option with what it takes; typer's names of types go where they add nothing."""
    words = " ".join(names.split())
    words = re.sub(r"(?<=\]) <[^>]*>$|(?<=\.) <[^>]*>$", "", words)
    words = re.sub(r"<(?:list\[)?str\]?>$", "TEXT", words)
    return f"<code>{words.replace('|', '&#124;').replace('<', '&lt;')}</code>"


def _prose(text: str) -> str:
    """Return help text as Markdown: what stands in angles or between bars is no markup."""
    words = " ".join(text.split()).replace("<", "&lt;").replace("*", "\\*").replace("|", "&#124;")
    return words.replace("[", "\\[")
