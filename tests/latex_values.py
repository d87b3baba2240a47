"""What LaTeX formulas come to for given numbers: read by a parser that knows nothing of rules.

It reads what a reader sees, so that a bracket left out by the printer gives other numbers. Values
are numbers and matrices; products of a parameter's square matrices are matrix products, all others
are of elements.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from steprule.matrix_ops.eigen import eigenbasis_list

RELATIONS: dict[str, Callable[[Any, Any], Any]] = {
    r"\le": lambda a, b: a <= b,
    r"\ge": lambda a, b: a >= b,
    r"\ne": lambda a, b: a != b,
    r"\mid": lambda a, b: b % a == 0,
    "<": lambda a, b: a < b,
    ">": lambda a, b: a > b,
    "=": lambda a, b: a == b,
}


@dataclass
class Identity:
    """A number times the identity matrix of whatever it is added to."""

    scale: float


CONSTANTS: dict[str, Any] = {r"\infty": math.inf, r"\text{nan}": math.nan, "I": Identity(1.0)}


def tensor(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(float(x), dtype=torch.float64)


def counted(x: Any) -> Any:
    """Return truth values as 1 and 0."""
    return x.double() if isinstance(x, Tensor) and x.dtype == torch.bool else x


def plain(x: Tensor) -> Any:
    return x if x.ndim else x.item()


FUNCTIONS: dict[str, Callable[..., Any]] = {
    r"\max": lambda a, b: plain(torch.maximum(tensor(a), tensor(b))),
    r"\min": lambda a, b: plain(torch.minimum(tensor(a), tensor(b))),
    r"\exp": lambda x: plain(tensor(x).exp()),
    r"\ln": lambda x: plain(tensor(x).log()),
    r"\tanh": lambda x: plain(tensor(x).tanh()),
    "sign": lambda x: plain(tensor(x).sign()),
    "expm1": lambda x: plain(tensor(x).expm1()),
    "log1p": lambda x: plain(tensor(x).log1p()),
    "clip": lambda x, low, high: torch.minimum(torch.maximum(x, tensor(low)), tensor(high)),
    "RMS": lambda x: plain(x.square().mean().sqrt()),
    "eigenvectors": lambda x: eigenbasis_list([x], [x], 1, 0)[0],
}
# With what stands at their lower right.
OF_AXES: dict[str, Callable[[Tensor, dict[str, Any]], Any]] = {
    "mean": lambda x, how: plain(x.mean(**how)),
    "sum": lambda x, how: plain(x.sum(**how)),
}
AXES = {"row": {"dim": -1, "keepdim": True}, "column": {"dim": -2, "keepdim": True}}
WORD = re.compile(r"\\[A-Za-z]+|\\.|.")


class Parser:
    """Reads one expression.

    Args:
        text: LaTeX.
        values: numbers and matrices by their symbols.
        orthogonalized: what Newton-Schulz iterations do: their coefficients are not in the text.
    """

    def __init__(
        self,
        text: str,
        values: Mapping[str, Any],
        orthogonalized: Callable[[Tensor, int], Tensor] | None = None,
    ) -> None:
        self.rest, self.values, self.orthogonalized = text.strip(), values, orthogonalized
        self.symbols = sorted(values, key=len, reverse=True)

    def value(self) -> Any:
        found = self.sum()
        assert not self.rest, f"not read: {self.rest!r}"
        return found

    def starts(self, *words: str) -> bool:
        return any(self.next_is(word) for word in words)

    def next_is(self, word: str) -> bool:
        """Whether this word comes next; a command does not end within a word."""
        if not self.rest.startswith(word):
            return False
        after = self.rest[len(word) : len(word) + 1]
        return not (word[0] == "\\" and word[-1].isalpha() and after.isalpha())

    def take(self, word: str) -> None:
        assert self.rest.startswith(word), f"expected {word!r} before {self.rest!r}"
        self.rest = self.rest[len(word) :].lstrip()

    def takes(self, word: str) -> bool:
        if not self.next_is(word):
            return False
        self.take(word)
        return True

    def sum(self) -> Any:
        total = self.product()
        while self.rest and self.rest[0] in "+-":
            sign = self.rest[0]
            self.take(sign)
            total, term = counted(total), counted(self.product())
            if isinstance(term, Identity):
                assert sign == "+"
                total = total + term.scale * torch.eye(len(total), dtype=torch.float64)
            else:
                total = total + term if sign == "+" else total - term
        return total

    def product(self) -> Any:
        sign = -1 if self.takes("-") else 1
        factors = [self.power()]
        while True:
            while self.takes(r"\cdot") or self.takes(r"\,"):
                pass
            if (
                not self.rest
                or self.rest[0] in "+-,&<>=)}/"
                or self.starts(
                    r"\right", r"\\", r"\end", r"\text{ and }", r"\text{ or }", r"\text{otherwise}"
                )
            ):
                break
            if any(self.next_is(relation) for relation in RELATIONS):
                break
            factors.append(self.power())
        return self.multiplied(sign, factors)

    def multiplied(self, sign: int, factors: Sequence[Any]) -> Any:
        if len(factors) == 1 and sign == 1:  # a condition, it may be
            return factors[0]
        if any(isinstance(x, Identity) for x in factors):
            numbers = [x.scale if isinstance(x, Identity) else x for x in factors]
            return Identity(sign * math.prod(numbers))
        is_square = [isinstance(x, Tensor) and x.ndim == 2 and self.is_side(x) for x in factors]
        total: Any = float(sign)
        for x, before, square in zip(factors, [False, *is_square], is_square, strict=False):
            is_matrix_product = isinstance(total, Tensor) and (square or before)
            x = counted(x)
            total = total @ x if is_matrix_product and isinstance(x, Tensor) else total * x
        return total

    def is_side(self, x: Tensor) -> bool:
        param = self.values[r"\theta_{t-1}"]
        return x.shape[0] == x.shape[1] or x.shape == param.T.shape

    def power(self) -> Any:
        base = self.atom()
        if self.takes("^"):
            if self.takes(r"\top"):
                return base.T
            exponent = self.group()
            assert not self.next_is("^"), f"a double superscript before {self.rest!r}"
            if isinstance(base, Tensor) and base.ndim == 2 and base.shape[0] == base.shape[1]:
                values, vectors = torch.linalg.eigh(base)
                base = (vectors * values.pow(exponent)) @ vectors.T
            else:
                base = base**exponent
        return base

    def group(self) -> Any:
        """Read what stands in braces, or one symbol or digit."""
        if not self.rest.startswith("{"):
            if self.rest[0].isdigit():
                digit = self.rest[0]
                self.take(digit)
                return float(digit)
            return self.symbol()
        self.take("{")
        found = self.sum()
        if self.takes("/"):
            found = found / self.sum()
        self.take("}")
        return found

    def symbol(self) -> Any:
        for symbol in self.symbols:
            if self.next_is(symbol):
                self.take(symbol)
                return self.values[symbol]
        raise AssertionError(f"unknown symbol before {self.rest!r}")

    def atom(self) -> Any:
        number = re.match(r"\d+(\.\d+)?", self.rest)
        if number:
            self.take(number[0])
            return float(number[0])
        for word, value in CONSTANTS.items():
            if self.takes(word):
                return value
        if self.takes(r"\frac"):
            above, below = self.group(), self.group()
            return above / below
        if self.takes(r"\sqrt"):
            return plain(tensor(self.group()).sqrt())
        if self.takes(r"\begin{cases}"):
            return self.cases()
        if self.rest.startswith("("):
            return self.bracketed("(", ")")[0]
        if self.takes(r"\left"):
            return self.between()
        if self.rest.startswith(r"\operatorname{"):
            return self.operator()
        for name, function in FUNCTIONS.items():
            if name.startswith("\\") and self.next_is(name):
                self.take(name)
                return function(*self.arguments())
        return self.symbol()

    def arguments(self) -> list[Any]:
        if self.takes(r"\left"):
            return self.bracketed("(", r"\right)")
        return self.bracketed("(", ")")

    def bracketed(self, before: str, after: str) -> list[Any]:
        self.take(before)
        found = [self.condition()]
        while self.takes(","):
            found.append(self.condition())
        self.take(after)
        return found

    def between(self) -> Any:
        if self.rest.startswith("("):
            return self.bracketed("(", r"\right)")[0]
        if self.rest.startswith(r"\lvert"):
            return tensor(self.bracketed(r"\lvert", r"\right\rvert")[0]).abs()
        if self.rest.startswith(r"\lfloor"):
            return math.floor(self.bracketed(r"\lfloor", r"\right\rfloor")[0])
        if self.rest.startswith(r"\langle"):
            a, b = self.bracketed(r"\langle", r"\right\rangle")
            self.below()
            return plain((a * b).sum())
        (x,) = self.bracketed(r"\lVert", r"\right\rVert")
        kind = self.below()
        if "1" in kind:
            return plain(x.abs().sum())
        return plain(x.abs().max()) if r"\infty" in kind else plain(x.square().sum().sqrt())

    def below(self) -> str:
        """Read what stands at the lower right."""
        if not self.takes("_"):
            return ""
        found = re.match(r"\{((?:[^{}]|\{[^{}]*\})*)\}|.", self.rest)
        assert found
        self.take(found[0])
        return found[1] or found[0]

    def operator(self) -> Any:
        self.take(r"\operatorname{")
        name = re.match(r"[A-Za-z0-9]+", self.rest)
        assert name
        self.take(name[0])
        self.take("}")
        below = self.below()
        if name[0] == "NewtonSchulz":
            assert self.orthogonalized is not None
            return self.orthogonalized(self.arguments()[0], int(below))
        if name[0] == "QR":
            self.take("(")
            gram, basis = self.symbol(), (self.takes(r"\,"), self.symbol())[1]
            self.take(")")
            return eigenbasis_list([gram], [basis], 0, 1)[0]
        if name[0] in OF_AXES:
            axis = next((how for word, how in AXES.items() if word in below), {})
            return OF_AXES[name[0]](self.arguments()[0], axis)
        return FUNCTIONS[name[0]](*self.arguments())

    def cases(self) -> Any:
        rows = []
        while True:
            value = self.condition()
            self.take("&")
            if self.takes(r"\text{otherwise}"):
                rows.append((True, value))
                self.take(r"\end{cases}")
                break
            self.take(r"\text{if }")
            rows.append((self.condition(), value))
            self.take(r"\\")
        total = rows[-1][1]
        for holds, value in reversed(rows[:-1]):
            if isinstance(holds, Tensor):
                total = torch.where(holds, tensor(value), tensor(total))
            else:
                total = value if holds else total
        return total

    def condition(self) -> Any:
        """Read an expression, or conditions joined by and, or."""
        found = self.comparison()
        while True:
            if self.takes(r"\text{ and }"):
                other = self.comparison()
                found = found & other
            elif self.takes(r"\text{ or }"):
                other = self.comparison()
                found = found | other
            else:
                return found

    def comparison(self) -> Any:
        if self.takes(r"\text{not }"):
            holds = self.comparison()
            return ~holds if isinstance(holds, Tensor) else not holds
        found = self.sum()
        for relation, holds in RELATIONS.items():
            if self.next_is(relation):
                self.take(relation)
                return holds(found, self.sum())
        return found


def values_of(
    latex: str,
    inputs: Mapping[str, Any],
    orthogonalized: Callable[[Tensor, int], Tensor] | None = None,
) -> dict[str, Any]:
    """Return the value of every symbol after the lines of an ``aligned`` environment."""
    known = dict(inputs)
    body = latex.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}")
    for line in body.split(" \\\\\n"):
        symbol, _, expression = line.partition(" &= ")
        known[symbol] = Parser(expression, known, orthogonalized).value()
    return known
