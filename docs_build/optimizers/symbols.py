"""Which symbols formulas print, and what they mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch

from docs_build.mathematics import inline
from steprule.cli.catalogue import defaults_of
from steprule.formulas import Formula, latex_of_symbol
from steprule.formulas.latex import Latex
from steprule.formulas.symbols import Symbol
from steprule.formulas.tree import Call, Expression, parts_of
from steprule.language.rule import Slot
from steprule.optimizer import Optimizer

_SUPPLIED = {
    "param": "the parameter",
    "grad": "its gradient",
    "step": "the number of the step, 1 at the first",
    "first": "the number of the step, 1 at the first",
    "machine_eps": "the machine epsilon of the parameter's dtype",
    "rows": "the length of the parameter's first axis",
    "columns": "that of all others together",
}
# What is said of operations that not everybody knows, by the names that expressions have.
_NOTES = {
    "orthogonalized": "NewtonSchulz draws the singular values of a matrix towards 1, by so many "
    "iterations with the coefficients `ns_coefficients` ([matrices](../matrices.md)).",
    "rms": "RMS(x) is the root of the mean of x².",
    "clip": "clip(x, a, b) is x, but no less than a and no more than b.",
    "all": "What is marked “all” is taken over all parameters of the optimizer.",
    "divides": "a | t says that a divides t.",
    "basis_of": "eigenvectors(A) has those of a symmetric matrix as columns.",
    "refined_basis": "QR(A) is the orthogonal factor of A = QR.",
    "-1": "A mean marked “row” is one number for each row; “column”, for each column.",
    "norm": "‖x‖ is the 2-norm of all elements.",
    "square_norm": "‖x‖ is the 2-norm of all elements.",
    "norm1": "‖x‖₁ is the sum of the absolute values of all elements.",
    "max_of": "‖x‖ with ∞ is the largest absolute value of all elements.",
}


class _Marking(Latex):
    """Writes one character of Unicode's private area for each symbol, so that they can be found."""

    def __init__(self) -> None:
        self.symbols: dict[Symbol, str] = {}

    def symbol(self, x: Symbol) -> str:
        return self.symbols.setdefault(x, chr(0xE000 + len(self.symbols)))


def undefined_in(formula: Formula) -> list[Symbol]:
    """Return the symbols that lines print and no line defines, as they are read.

    What an operation has without printing it, as the iteration of Newton and Schulz its
    coefficients, is not among them.
    """
    marking = _Marking()
    written = "".join(marking.of(line.expression) for line in formula.lines)
    defined = {line.symbol for line in formula.lines}
    by_mark = {mark: symbol for symbol, mark in marking.symbols.items()}
    marks = dict.fromkeys(character for character in written if character in by_mark)
    return [by_mark[mark] for mark in marks if by_mark[mark] not in defined]


def rows_of(cls: type[Optimizer], formulas: Sequence[Formula]) -> dict[tuple[Symbol, str], str]:
    """Return what each symbol of formulas is: it and a name of the rule, and the meaning."""
    found: dict[tuple[Symbol, str], str] = {}
    for formula in formulas:
        printed = undefined_in(formula)
        for name, symbol in formula.inputs.items():
            kept = symbol.at("t") if symbol.time == "t-1" else symbol
            if symbol in printed or kept in printed:
                shown = symbol if symbol in printed else kept
                key = "step" if name == "first" else name
                found.setdefault((shown, key), _meaning(cls, name))
    return found


def table(cls: type[Optimizer], formulas: Sequence[Formula]) -> Iterator[str]:
    """Give a table of what symbols are, and notes on operations."""
    yield from ("| symbol | is |", "|---|---|")
    for (symbol, _), meaning in rows_of(cls, formulas).items():
        yield f"| {inline(latex_of_symbol(symbol))} | {meaning} |"
    yield ""
    names = {
        name for one in formulas for line in one.lines for name in _operations(line.expression)
    }
    notes = dict.fromkeys(note for name, note in _NOTES.items() if name in names)
    yield from (f"- {note}" for note in notes)
    yield ""


def _operations(x: Expression) -> Iterator[str]:
    if isinstance(x, Call):
        yield x.name
        yield from map(str, x.settings)
    for part in parts_of(x):
        yield from _operations(part)


def _meaning(cls: type[Optimizer], name: str) -> str:
    rule = cls.rule
    assert rule is not None
    if name in rule.slots:
        return _of_slot(name, rule.slots[name])
    if name in _SUPPLIED:
        return _SUPPLIED[name]
    defaults = {**cls.extras, **defaults_of(cls)}
    for option, parts in rule.parts.items():
        if name in parts:
            place = parts.index(name)
            value = defaults.get(option)
            if isinstance(value, tuple) and place < len(value):
                return f"option `{option}[{place}]`, {value[place]!r}"
            # One that follows from others unless it is given, by an argument of its own.
            make: Callable[..., Optimizer] = cls
            number = make([torch.zeros(1, requires_grad=True)]).param_groups[0][option][place]
            default = f", {defaults[name]!r}" if name in defaults else ""
            return f"option `{name}`{default}: {number:.4g} if the others have their defaults"
    if name in defaults:
        return f"option `{name}`, {defaults[name]!r}"
    return f"option `{name}`, [as all optimizers have it](../terms.md)"


def _of_slot(name: str, slot: Slot) -> str:
    start = f"`{slot.init}`" if isinstance(slot.init, str) else f"{slot.init:g}"
    what = {"scalar": ", one number", "left": ", a matrix", "right": ", a matrix"}
    if slot.is_square and slot.init == 1:
        start = "the identity"
    return f"state `{name}`{what.get(slot.shape, '')}, {start} at first"
