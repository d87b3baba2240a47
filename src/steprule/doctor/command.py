"""`steprule doctor`, without anything that an extra brings."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import os
import sys
from collections.abc import Iterator, Sequence

from steprule.doctor.examination import examine
from steprule.doctor.finding import Finding
from steprule.doctor.report import Report, lines_of

#: Exit codes: as a shell has it of a process that its reader left, and of output that went nowhere.
READER_LEFT, NOT_PRINTED = 141, 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 if something is broken, else 0.

    Args:
        arguments: what stands after the command; `sys.argv` by default.
    """
    parser = argparse.ArgumentParser(
        prog="steprule doctor",
        description="Check that this installation works; paste what it prints into reports.",
    )
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    return doctor(as_json=parser.parse_args(arguments).json)


def doctor(*, as_json: bool = False) -> int:
    """Print what is found and return the exit code.

    Whoever reads it may stop reading (`steprule doctor | head`); a disk may be full.

    Text is printed line by line, for a machine on which compiled code ends the process is one
    whose report is wanted: what was found until then stands there, and where it ended follows.
    """
    if sys.stderr is not None and not faulthandler.is_enabled():
        faulthandler.enable()
    try:
        return _examined_and_said(as_json)
    except _NotPrintedError as error:
        _print_no_more()
        if isinstance(error.__cause__, BrokenPipeError):
            return READER_LEFT
        if sys.stderr is not None:
            with contextlib.suppress(OSError):
                sys.stderr.write(f"steprule: the report can't be printed: {error}\n")
        return NOT_PRINTED


def _examined_and_said(as_json: bool) -> int:
    findings: list[Finding] = []

    def kept() -> Iterator[Finding]:
        for finding in examine():
            findings.append(finding)
            yield finding

    if as_json:
        report = Report(tuple(kept()))
        _say(json.dumps(report.as_json(), indent=2))
        return int(report.is_broken)
    for line in lines_of(kept()):
        _say(line)
    report = Report(tuple(findings))
    for line in report.closing():
        _say(line)
    return int(report.is_broken)


class _NotPrintedError(Exception):
    """What was found could not be written out."""


def _say(text: str) -> None:
    if sys.stdout is None:  # closed by who called
        return
    # A console that knows fewer letters than a folder's name has is no reason to stop.
    encoding = sys.stdout.encoding or "ascii"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        sys.stdout.flush()
    except OSError as error:
        raise _NotPrintedError(error.strerror or str(error)) from error


def _print_no_more() -> None:
    """Keep Python from writing out, at its end, what could not be written before."""
    with contextlib.suppress(OSError, ValueError):  # a stdout that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
