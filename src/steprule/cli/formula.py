"""`steprule formula`: the update of an optimizer, as LaTeX or to be read in a terminal."""

from __future__ import annotations

from steprule.cli.errors import CommandError
from steprule.cli.warm import parse_options
from steprule.formulas import formulas, latex, text
from steprule.optimizer.options import suggestion
from steprule.rules import OPTIMIZERS


def print_formula(optimizer: str, options: str | None, *, as_text: bool) -> None:
    """Print the formula of an optimizer.

    Args:
        optimizer: its name in the registry.
        options: `NAME=VALUE`, joined by commas.
        as_text: Unicode instead of LaTeX.

    Raises:
        CommandError: something unknown, or an optimizer without a formula.
    """
    name = optimizer.strip().lower()
    if name not in OPTIMIZERS:
        raise CommandError(
            f"unknown optimizer {optimizer!r}{suggestion(name, OPTIMIZERS)}; "
            f"those of steprule are {', '.join(OPTIMIZERS)}"
        )
    given = parse_options(options) if options else {}
    try:
        (found,) = formulas(OPTIMIZERS[name], **given)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(text(found) if as_text else latex(found))
