"""Formulas as text for a terminal."""

# ruff: noqa: RUF001  # mathematics has these letters
from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence

from steprule.formulas.lines import Formula
from steprule.formulas.symbols import GREEK, Symbol
from steprule.formulas.tree import Call
from steprule.formulas.writing import Writing, exponent_of, plain_number

_RELATIONS = {"lt": "<", "gt": ">", "le": "≤", "ge": "≥", "eq": "=", "ne": "≠"}
_NAMED = {
    "maximum": "max",
    "minimum": "min",
    "log": "ln",
    "rms": "RMS",
    "mean_of": "mean",
    "sum_of": "sum",
    "basis_of": "eigenvectors",
}
_BETWEEN = {
    "abs": "|{}|",
    "norm": "‖{}‖",
    "norm1": "‖{}‖₁",
    "max_of": "‖{}‖∞",
    "square_norm": "‖{}‖²",
    "floor": "⌊{}⌋",
    "dot_of": "⟨{}⟩",
}
_OF = {"all": "all", "group": "group", -1: "row", -2: "column"}
_ACCENTS = {"tilde": "\u0303", "hat": "\u0302", "bar": "\u0304", "check": "\u030c"}
_BELOW = dict(zip("0123456789+-aehijklmnoprstuvx", "₀₁₂₃₄₅₆₇₈₉₊₋ₐₑₕᵢⱼₖₗₘₙₒₚᵣₛₜᵤᵥₓ", strict=True))
_ABOVE = dict(zip("0123456789+-−t", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻ᵗ", strict=True))


class PlainText(Writing):
    """Writes Unicode on one line: θₜ = θₜ₋₁ − γ m̂ₜ/(√v̂ₜ + ε)."""

    minus = "−"

    def number(self, x: float) -> str:
        if math.isnan(x):
            return "nan"
        if math.isinf(x):
            return "∞" if x > 0 else "−∞"
        digits, power = plain_number(x)
        digits = digits.replace("-", "−")
        return f"{digits}e{power}" if power else digits

    def symbol(self, x: Symbol) -> str:
        text = GREEK.get(x.base, x.base)
        text = unicodedata.normalize("NFC", text + _ACCENTS[x.accent]) if x.accent else text
        if x.above:
            text += "′" if x.above == "prime" else _moved(x.above, _ABOVE, "^")
        if x.below:
            below = {"infty": "∞"}.get(x.below, GREEK.get(x.below, x.below))
            text += below if below == "∞" else _moved(below, _BELOW, "_")
        return text + "".join(_BELOW[c] for c in x.time)

    def in_brackets(self, x: str) -> str:
        return f"({x})"

    def fraction(self, above: str, below: str) -> str:
        is_sum = any(f" {sign} " in above for sign in ("+", self.minus))
        top = f"({above})" if is_sum and not _is_one_piece(above) else above
        return f"{top}/{below if _is_one_piece(below) else f'({below})'}"

    def side_by_side(self, factors: Sequence[str]) -> str:
        text = ""
        for x in factors:
            is_clear = not x[0].isdigit() and not ("/" in text and not _is_one_piece(text))
            text += ("" if not text else " " if is_clear else " · ") + x
        return text

    def raised(self, base: str, exponent: str) -> str:
        if all(c in _ABOVE for c in exponent):
            return base + "".join(_ABOVE[c] for c in exponent)
        return f"{base}^{exponent if _is_one_piece(exponent) else f'({exponent})'}"

    def call(self, x: Call) -> str:
        parts = [self.of(operand) for operand in x.operands]
        over = [s for s in x.settings if s in _OF and (x.is_array or isinstance(s, str))]
        below = "".join(f"_{_OF[setting]}" for setting in over)
        if x.name in _RELATIONS:
            left, right = map(self.apart, x.operands)
            return f"{left} {_RELATIONS[x.name]} {right}"
        if x.name in _BETWEEN:
            return _BETWEEN[x.name].format(", ".join(parts)) + below
        match x.name:
            case "sqrt":
                return f"√{parts[0] if _is_one_piece(parts[0]) else f'({parts[0]})'}"
            case "where":
                other = x.operands[2]
                is_further = isinstance(other, Call) and other.name == "where"
                rest = parts[2].removeprefix("{").removesuffix("}") if is_further else parts[2]
                return f"{{{parts[1]} if {parts[0]}, else {rest}}}"
            case "and" | "or":
                return f" {x.name} ".join(self.either(x))
            case "not":
                return f"not {self._factor(x.operands[0])}"
            case "divides":
                return f"{parts[0]} | {parts[1]}"
            case "orthogonalized" | "gram" | "sandwiched" | "root_of" | "refined_basis":
                return self._of_matrices(x, parts)
        return f"{_NAMED.get(x.name, x.name)}{below}({', '.join(parts)})"

    def _of_matrices(self, x: Call, parts: list[str]) -> str:
        match x.name:
            case "orthogonalized":
                return f"NewtonSchulz{self.raised('', str(x.settings[0]))}({parts[0]})"
            case "gram":
                one = self._factor(x.operands[0])
                return f"{one} {one}ᵀ" if x.settings[0] == "left" else f"{one}ᵀ {one}"
            case "sandwiched":
                sides, transposed = x.settings
                middle, *squares = (self._factor(operand) for operand in x.operands)
                by = dict(zip(sides, squares, strict=True))
                by = {side: s + "ᵀ" if side == transposed else s for side, s in by.items()}
                return " ".join(filter(None, (by.get("left"), middle, by.get("right"))))
            case "root_of":
                return f"({parts[0]}/({parts[1]}) + {parts[2]} I)^(−{exponent_of(x)})"
        return f"QR({parts[0]} {parts[1]})"


def text_lines(formula: Formula) -> list[str]:
    """Return one line of text for each line."""
    writing = PlainText()
    symbols = [writing.symbol(line.symbol) for line in formula.lines]
    width = max(map(_width, symbols), default=0)
    return [
        f"{symbol}{' ' * (width - _width(symbol))} = {writing.of(line.expression)}"
        for symbol, line in zip(symbols, formula.lines, strict=True)
    ]


def text(formula: Formula) -> str:
    """Return the lines below each other."""
    return "\n".join(text_lines(formula))


def _width(x: str) -> int:
    return sum(not unicodedata.combining(c) for c in x)


def _moved(mark: str, alphabet: dict[str, str], otherwise: str) -> str:
    if all(c in alphabet for c in mark):
        return "".join(alphabet[c] for c in mark)
    return f"{otherwise}{mark}"


def _is_one_piece(x: str) -> bool:
    """Whether it holds together without brackets: a symbol, a call, what stands in brackets."""
    depth = 0
    for i, c in enumerate(x):
        depth += (c in "({⌊⟨") - (c in ")}⌋⟩")
        if depth == 0 and (c in " /" or (c == "^" and i)):
            return False
    return True
