"""How expressions are put down, whatever the letters: where brackets and fractions go."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from steprule.formulas.symbols import Symbol
from steprule.formulas.tree import (
    Call,
    Expression,
    Number,
    Power,
    Product,
    Quantity,
    Sum,
    is_negative,
    negative,
)
from steprule.language.recording import TRUTHS

# Operations that are true or false.
CONDITIONS = TRUTHS | {"divides"}


class Writing(ABC):
    """Writes expressions in one notation."""

    def of(self, x: Expression) -> str:
        """Return an expression as it stands by itself."""
        if isinstance(x, Number):
            return self.number(x.value)
        if isinstance(x, Quantity):
            return self.symbol(x.symbol)
        if isinstance(x, Sum):
            return self._sum(x)
        if isinstance(x, Product):
            return self._product(x)
        if isinstance(x, Power):
            return self._power(x)
        return self.call(x)

    @abstractmethod
    def number(self, x: float) -> str: ...

    @abstractmethod
    def symbol(self, x: Symbol) -> str: ...

    @abstractmethod
    def in_brackets(self, x: str) -> str: ...

    @abstractmethod
    def fraction(self, above: str, below: str) -> str: ...

    @abstractmethod
    def side_by_side(self, factors: Sequence[str]) -> str: ...

    @abstractmethod
    def raised(self, base: str, exponent: str) -> str: ...

    @abstractmethod
    def call(self, x: Call) -> str: ...

    minus = "-"

    def _sum(self, x: Sum) -> str:
        first, *others = x.terms
        text = self.apart(first)
        for term in others:
            if is_negative(term):
                text += f" {self.minus} {self.apart(negative(term))}"
            else:
                text += f" + {self.apart(term)}"
        return text

    def apart(self, x: Expression) -> str:
        """Return a term, or a side of a comparison: in brackets if it is a condition."""
        return self.in_brackets(self.of(x)) if is_condition(x) else self.of(x)

    def _product(self, x: Product) -> str:
        sign = self.minus if x.sign < 0 else ""
        numbers = [f for f in x.above if not f.is_array], [f for f in x.below if not f.is_array]
        arrays = [f for f in x.above if f.is_array], [f for f in x.below if f.is_array]
        if arrays[1] and not arrays[0]:  # nothing of its own is left for above the line
            return sign + self._ratio(list(x.above), list(x.below))
        pieces = []
        # Several fractions side by side are hard to read.
        if numbers[1] and (arrays[1] or not numbers[0]):
            return sign + self._ratio([*numbers[0], *arrays[0]], [*numbers[1], *arrays[1]])
        if numbers[0]:
            pieces.append(self._ratio(*numbers))
        if arrays[0]:
            pieces.append(self._ratio(*arrays))
        return sign + self.side_by_side(pieces)

    def _ratio(self, above: list[Expression], below: list[Expression]) -> str:
        if not below:
            return self.side_by_side([self._factor(x) for x in above])
        top = self._alone(above) if above else self.number(1.0)
        return self.fraction(top, self._alone(below))

    def _alone(self, factors: list[Expression]) -> str:
        """Return factors within bounds of their own, such as a fraction's line."""
        if len(factors) == 1:
            return self.apart(factors[0])
        return self.side_by_side([self._factor(x) for x in factors])

    def _factor(self, x: Expression) -> str:
        needs = isinstance(x, Sum) or is_negative(x) or self.is_loose(x)
        return self.in_brackets(self.of(x)) if needs else self.of(x)

    def _power(self, x: Power) -> str:
        is_tight = isinstance(x.base, Quantity) and not x.base.symbol.above
        is_tight = is_tight or (isinstance(x.base, Number) and is_short(x.base.value))
        if isinstance(x.base, Call):
            is_tight = x.base.name in ("norm", "norm1", "max_of", "abs")
        base = self.of(x.base)
        return self.raised(base if is_tight else self.in_brackets(base), self.of(x.exponent))

    def is_loose(self, x: Expression) -> bool:
        """Whether it needs brackets among factors, though it is no sum."""
        return is_condition(x) or (isinstance(x, Call) and x.name == "where")

    def either(self, x: Call) -> list[str]:
        """Return the conditions of an "and" or an "or", other connections in brackets."""
        return [
            self.in_brackets(self.of(part))
            if isinstance(part, Call) and part.name in ("and", "or")
            else self.of(part)
            for part in x.operands
        ]


def is_condition(x: Expression) -> bool:
    """Whether it is true or false, not a number."""
    return isinstance(x, Call) and x.name in CONDITIONS


def is_short(x: float) -> bool:
    """Whether a number is written as digits alone."""
    return math.isfinite(x) and x >= 0 and not plain_number(x)[1]


def plain_number(x: float) -> tuple[str, int]:
    """Return digits and a power of ten that make a finite number, the power 0 where it is short."""
    exact = Decimal(repr(x))
    short = exact.normalize()
    is_round = abs(x) >= 1e6 and len(short.as_tuple().digits) <= 6
    if x and (is_round or not 1e-3 <= abs(x) < 1e16):
        power = short.adjusted()
        return f"{short.scaleb(-power):f}", power
    return str(int(x)) if x == int(x) else f"{exact:f}", 0


def exponent_of(x: Call) -> str:
    """Return the exponent of a root of a matrix, as a fraction where it is one."""
    ratio = Fraction(x.settings[0]).limit_denominator(64)
    return str(ratio) if float(ratio) == x.settings[0] else repr(x.settings[0])
