"""Formulas as LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

from steprule.formulas.lines import Formula
from steprule.formulas.symbols import GREEK, Symbol
from steprule.formulas.tree import Call
from steprule.formulas.writing import Writing, exponent_of, plain_number

_RELATIONS = {"lt": "<", "gt": ">", "le": r"\le", "ge": r"\ge", "eq": "=", "ne": r"\ne"}
_NAMED = {
    "sign": r"\operatorname{sign}",
    "maximum": r"\max",
    "minimum": r"\min",
    "clip": r"\operatorname{clip}",
    "exp": r"\exp",
    "expm1": r"\operatorname{expm1}",
    "log": r"\ln",
    "log1p": r"\operatorname{log1p}",
    "tanh": r"\tanh",
    "rms": r"\operatorname{RMS}",
    "mean_of": r"\operatorname{mean}",
    "sum_of": r"\operatorname{sum}",
    "basis_of": r"\operatorname{eigenvectors}",
}
_BETWEEN = {
    "abs": (r"\left\lvert ", r" \right\rvert", ""),
    "norm": (r"\left\lVert ", r" \right\rVert", ""),
    "norm1": (r"\left\lVert ", r" \right\rVert", "1"),
    "max_of": (r"\left\lVert ", r" \right\rVert", r"\infty"),
    "floor": (r"\left\lfloor ", r" \right\rfloor", ""),
}
_OF = {"all": "all", "group": "group", -1: "row", -2: "column"}


class Latex(Writing):
    """Writes LaTeX that every renderer knows: amsmath's, without macros."""

    def number(self, x: float) -> str:
        if math.isnan(x):
            return r"\text{nan}"
        if math.isinf(x):
            return r"\infty" if x > 0 else r"-\infty"
        digits, power = plain_number(x)
        if not power:
            return digits
        factor = {"1": "", "-1": "-"}.get(digits, rf"{digits} \cdot ")
        return f"{factor}{self.raised('10', str(power))}"

    def symbol(self, x: Symbol) -> str:
        text = _letter(x.base)
        if x.accent:
            text = rf"\{x.accent}{{{text}}}"
        if x.above:
            text += f"^{{{_mark(x.above)}}}"
        below = ",".join(filter(None, (_mark(x.below) if x.below else "", x.time)))
        if below:
            text += f"_{{{below}}}" if len(below) > 1 else f"_{below}"
        return text

    def in_brackets(self, x: str) -> str:
        is_tall = any(word in x for word in (r"\frac", r"\sqrt", r"\begin"))
        return rf"\left({x}\right)" if is_tall else f"({x})"

    def fraction(self, above: str, below: str) -> str:
        return rf"\frac{{{above}}}{{{below}}}"

    def side_by_side(self, factors: Sequence[str]) -> str:
        text = ""
        for x in factors:
            if text:
                # Words run into each other, and so do numbers.
                is_word = "\\text" in text.rpartition(" ")[2] or x.startswith("\\text")
                text += r" \cdot " if x[0].isdigit() else r" \, " if is_word else " "
            text += x
        return text

    def raised(self, base: str, exponent: str) -> str:
        return f"{base}^{{{exponent}}}" if len(exponent) > 1 else f"{base}^{exponent}"

    def call(self, x: Call) -> str:
        parts = [self.of(operand) for operand in x.operands]
        if x.name in _RELATIONS:
            left, right = map(self.apart, x.operands)
            return f"{left} {_RELATIONS[x.name]} {right}"
        if x.name in _BETWEEN:
            before, after, norm = _BETWEEN[x.name]
            below = ",".join(filter(None, (norm, _of_what(x))))
            return before + parts[0] + after + (f"_{{{below}}}" if below else "")
        if x.name in _NAMED:
            return f"{_NAMED[x.name]}{_end_of(x)}{_arguments(parts)}"
        return self._special(x, parts)

    def _special(self, x: Call, parts: list[str]) -> str:
        match x.name:
            case "sqrt":
                return rf"\sqrt{{{parts[0]}}}"
            case "where":
                return self._cases(x)
            case "and":
                return r" \text{ and } ".join(self.either(x))
            case "or":
                return r" \text{ or } ".join(self.either(x))
            case "not":
                return rf"\text{{not }} {self._factor(x.operands[0])}"
            case "divides":
                return rf"{parts[0]} \mid {parts[1]}"
            case "square_norm":
                return rf"\left\lVert {parts[0]} \right\rVert{_end_of(x)}^2"
            case "dot_of":
                return rf"\left\langle {parts[0]}, {parts[1]} \right\rangle{_end_of(x)}"
        return self._of_matrices(x, parts)

    def _of_matrices(self, x: Call, parts: list[str]) -> str:
        match x.name:
            case "orthogonalized":
                return rf"\operatorname{{NewtonSchulz}}_{{{x.settings[0]}}}{_arguments(parts[:1])}"
            case "gram":
                one = self._factor(x.operands[0])
                return rf"{one} {one}^\top" if x.settings[0] == "left" else rf"{one}^\top {one}"
            case "sandwiched":
                return self._sandwiched(x)
            case "root_of":
                inside = rf"\frac{{{parts[0]}}}{{{parts[1]}}} + {parts[2]} I"
                return self.raised(rf"\left({inside}\right)", f"-{exponent_of(x)}")
            case "refined_basis":
                return rf"\operatorname{{QR}}({parts[0]} \, {parts[1]})"
        return rf"\operatorname{{{x.name}}}{_arguments(parts)}"

    def _sandwiched(self, x: Call) -> str:
        sides, transposed = x.settings
        middle, *squares = (self._factor(operand) for operand in x.operands)
        written = {
            side: rf"{square}^\top" if side == transposed else square
            for side, square in zip(sides, squares, strict=True)
        }
        return " ".join(filter(None, (written.get("left"), middle, written.get("right"))))

    def _cases(self, x: Call) -> str:
        rows, other = [], x
        while isinstance(other, Call) and other.name == "where":
            condition, then, rest = other.operands
            rows.append(rf"{self.of(then)} & \text{{if }} {self.of(condition)}")
            if not (isinstance(rest, Call) and rest.name == "where"):
                rows.append(rf"{self.of(rest)} & \text{{otherwise}}")
                break
            other = rest
        return r"\begin{cases} " + r" \\ ".join(rows) + r" \end{cases}"


def latex_lines(formula: Formula) -> list[str]:
    """Return one equation for each line."""
    writing = Latex()
    return [
        f"{writing.symbol(line.symbol)} &= {writing.of(line.expression)}" for line in formula.lines
    ]


def latex(formula: Formula) -> str:
    """Return the lines below each other, aligned at what they begin with."""
    rows = " \\\\\n".join(latex_lines(formula))
    return f"\\begin{{aligned}}\n{rows}\n\\end{{aligned}}"


def latex_of_symbol(symbol: Symbol) -> str:
    """Return one symbol."""
    return Latex().symbol(symbol)


def _letter(base: str) -> str:
    if base in GREEK:
        return f"\\{base}"
    return base if len(base) == 1 else r"\text{" + base.replace("_", r"\_") + "}"


def _mark(mark: str) -> str:
    if mark in GREEK or mark in ("infty", "max", "min", "prime"):
        return f"\\{mark}"
    is_word = len(mark) > 1 and mark.isalpha()
    return r"\text{" + mark + "}" if is_word else mark


def _arguments(parts: Sequence[str]) -> str:
    inside = ", ".join(parts)
    is_tall = any(word in inside for word in (r"\frac", r"\sqrt", r"\begin"))
    return rf"\left({inside}\right)" if is_tall else f"({inside})"


def _end_of(x: Call) -> str:
    below = _of_what(x)
    return f"_{{{below}}}" if below else ""


def _of_what(x: Call) -> str:
    """Return over what a sum is taken, if not over all elements."""
    if not x.is_array:
        return ",".join(rf"\text{{{w}}}" for w in x.settings if w in ("all", "group"))
    words = [_OF[setting] for setting in x.settings if setting in _OF]
    return ",".join(rf"\text{{{word}}}" for word in words)
