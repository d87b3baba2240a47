"""What `steprule` does where its extra is missing: `doctor`, `warm`, its version, and saying so."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

#: Commands that need nothing but the library.
COMMANDS = ("doctor", "warm")


def run(arguments: Sequence[str], missing: Sequence[str]) -> int:
    """Run a command line without the extra and return its exit code.

    Args:
        arguments: what stands after `steprule`.
        missing: the packages that the extra would bring.
    """
    command = next((word for word in arguments if not word.startswith("-")), None)
    rest = [word for word in arguments if word != command]
    if command == "doctor":  # which tells what is missing, and more
        from steprule.doctor.command import main as doctor

        return doctor(rest)
    if command == "warm":
        return _warm(list(arguments)[list(arguments).index("warm") + 1 :])
    if "--version" in rest:
        from steprule import __version__

        print(f"steprule {__version__}")
        return 0
    needed = "the command line needs its extra: pip install '.[cli]' in the checkout "
    needed += f"(not found: {', '.join(missing)}); {' and '.join(COMMANDS)} do without"
    if "--help" in rest and command is None:
        print(f"usage: steprule {{{','.join(COMMANDS)}}} ...\n\nFor all else {needed}.")
        return 0
    print(f"steprule: {needed}", file=sys.stderr)
    return 2


def _warm(arguments: Sequence[str]) -> int:
    from steprule.cli.errors import CommandError
    from steprule.cli.warm import warm

    parser = argparse.ArgumentParser(
        prog="steprule warm",
        description="Compile ahead of time what optimizers need at their first step.",
    )
    parser.add_argument("optimizers", nargs="*", metavar="OPTIMIZER", help="all by default")
    parser.add_argument("--dtypes", default="float32", help="joined by commas: float32,bfloat16")
    parser.add_argument("--options", action="append", default=[], metavar="NAME=VALUE,...")
    parser.add_argument("--target", metavar="CARD", help="compile for a card: cuda:90")
    given = parser.parse_intermixed_args(arguments)
    try:
        warm(given.optimizers, given.dtypes, given.options, given.target)
    except CommandError as error:
        print(f"steprule: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0
