"""docs/errors.md, written from the catalogue: python tests/error_cases/page.py > docs/errors.md."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from error_cases.case import Case  # the tests are no package
from error_cases.catalogue import CASES

HEAD = """# Errors

A message names the parameter (by its name, or by group and index) or the argument, the value, and
what would do. Where torch refuses too, its sentence comes first. A call that is refused has changed
nothing: no group, no state, no parameter. What one optimizer or scheduler refuses, all refuse that
have the argument; it stands here once.
"""
FOOT = """
Written by `python tests/error_cases/page.py > docs/errors.md` from the calls in
`tests/error_cases/`; `tests/test_errors.py` makes each of them, and more."""


COLUMNS = "| of | argument | given | raised | what to do |"


def cell(text: str, *, is_code: bool = False) -> str:
    """Text as it may stand in a cell of a table."""
    lines = text.replace("|", "\\|").splitlines()
    return "<br>".join(f"`` {line} ``" for line in lines) if is_code else " ".join(lines)


def row(case: Case) -> str:
    error = case.raised()
    message = error.args[0] if isinstance(error, KeyError) else str(error)
    return (
        f"| `{case.where}` | {case.argument} | {cell(case.given, is_code=True)} "
        f"| {cell(f'{type(error).__name__}: {message}', is_code=True)} | {cell(case.remedy)} |"
    )


def page() -> str:
    """The page."""
    shown = [case for case in CASES if case.is_shown]
    lines = [HEAD.rstrip()]
    for title in dict.fromkeys(case.about for case in shown):
        cases = [case for case in shown if case.about == title]
        lines += ["", f"## {title}", "", COLUMNS, "|---|---|---|---|---|", *map(row, cases)]
    return "\n".join([*lines, FOOT]) + "\n"


if __name__ == "__main__":
    sys.stdout.write(page())
