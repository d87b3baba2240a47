"""The `steprule` command: compare and time optimizers, plot schedules, list what there is.

Everything here but `doctor` needs the extra `cli`; the library itself never imports this package.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

EXTRA = ("jinja2", "matplotlib", "rich", "sklearn", "typer")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what stands after `steprule` on the command line; `sys.argv` by default.

    Returns:
        0 when the command did its work, 1 when `doctor` found something broken, 2 after a
        one-line error about what was asked, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    missing = [name for name in EXTRA if find_spec(name) is None]
    if missing and given[:1] == ["doctor"]:  # which tells what is missing, and more
        from steprule.doctor.command import main as doctor

        return doctor(given[1:])
    if missing:
        print(
            "steprule: the command line needs its extra: pip install 'steprule[cli]' "
            f"(not found: {', '.join(missing)})",
            file=sys.stderr,
        )
        return 2
    try:  # importing takes seconds, in which Ctrl-C may come
        from steprule.cli.app import run

        return run(given)
    except KeyboardInterrupt:
        print("steprule: interrupted", file=sys.stderr)
        return 130
