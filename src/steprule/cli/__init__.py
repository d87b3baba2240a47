"""The `steprule` command: compare and time optimizers, plot schedules, list what there is.

Everything here but `doctor` and `warm` needs the extra `cli`; the library itself never imports
this package.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from importlib.util import find_spec

#: The extra's modules, and the packages that bring them.
EXTRA = {
    "jinja2": "jinja2",
    "matplotlib": "matplotlib",
    "rich": "rich",
    "sklearn": "scikit-learn",
    "typer": "typer",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        arguments: what stands after `steprule` on the command line; `sys.argv` by default.

    Returns:
        0 when the command did its work, 1 when `doctor` found something broken, 2 after a
        one-line error about what was asked, 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    missing = [package for name, package in EXTRA.items() if find_spec(name) is None]
    try:  # importing takes seconds, in which Ctrl-C may come
        if missing:
            from steprule.cli import without_extra

            return without_extra.run(given, missing)
        from steprule.cli.app import run

        return run(given)
    except OSError as error:  # `steprule list > FILE` on a full disk
        if error.errno != errno.ENOSPC:
            raise
        print(f"steprule: {error.strerror}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("steprule: interrupted", file=sys.stderr)
        return 130
