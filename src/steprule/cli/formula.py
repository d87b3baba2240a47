"""`steprule formula`: the update of an optimizer, as LaTeX or to be read in a terminal."""

from __future__ import annotations

import re
from typing import Any

from steprule.cli.errors import CommandError, unreadable
from steprule.cli.labels import parse_label
from steprule.cli.warm import parse_options
from steprule.formulas import formulas, latex, text
from steprule.optimizer.options import suggestion
from steprule.rules import OPTIMIZERS
from steprule.schedules.parse import ParseError, parse_value

SCALAR = "scalar"


def print_formula(
    optimizer: str, options: str | None, shape: str | None = None, *, as_text: bool
) -> None:
    """Print the formula of an optimizer.

    Args:
        optimizer: its name in the registry; options may stand behind it, as in `compare`:
            `adam+cautious`.
        options: `NAME=VALUE`, joined by commas; a value may be a schedule, as in
            `weight_decay=linear(0, 0.1, steps=9)`.
        shape: of the parameter, `64x32`; `scalar` for one without axes. By default a matrix.
        as_text: Unicode instead of LaTeX.

    Raises:
        CommandError: something unknown, or an optimizer without a formula.
    """
    label = parse_label(optimizer.strip().lower(), "steprule formula")
    if label.wrappers or label.is_torch:
        why = (
            "torch's classes are not recorded"
            if label.is_torch
            else f"{label.wrappers[0]} goes round an optimizer and has no rule"
        )
        raise CommandError(f"steprule formula {label.text}: {why}; ask for {label.name} alone")
    if label.name not in OPTIMIZERS:
        raise CommandError(
            f"unknown optimizer {label.text!r}{suggestion(label.name, OPTIMIZERS)}; "
            f"those of steprule are {', '.join(OPTIMIZERS)}"
        )
    given: dict[str, Any] = parse_options(options) if options else {}
    twice = [name for name in given if name in label.options]
    if twice:
        raise CommandError(f"--options {options}: {twice[0]} is given twice")
    given = {
        name: _with_schedule(name, value) for name, value in {**label.options, **given}.items()
    }
    of_shape = {} if shape is None else {"shape": _shape_of(shape)}
    try:
        (found,) = formulas(OPTIMIZERS[label.name], **of_shape, **given)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(text(found) if as_text else latex(found))


def _with_schedule(name: str, value: Any) -> Any:
    """Return an option's value, a schedule that is written as a call as what it says."""
    if not (isinstance(value, str) and "(" in value):
        return value
    try:
        return parse_value(value)
    except ParseError as error:
        raise unreadable(f"steprule formula: {name}={value}", error) from error


def _shape_of(written: str) -> tuple[int, ...]:
    if written.strip().lower() == SCALAR:
        return ()
    if not re.fullmatch(r"[1-9][0-9]*(x[1-9][0-9]*)*", written.strip()):
        raise CommandError(
            f"--shape {written}: expected lengths of at least 1 such as 64x32, 64 for a vector, or "
            f"{SCALAR}"
        )
    return tuple(map(int, written.split("x")))
