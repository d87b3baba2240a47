"""Expressions as they are written: sums, fractions, roots. Each is made in one normal form.

``a - b`` is a sum with a term whose sign is minus; a quotient is a product with factors below the
line. So signs and fractions are put where a reader expects them, whatever the code says.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from steprule.formulas.symbols import Symbol


@dataclass(frozen=True)
class Number:
    """A constant."""

    value: float

    is_array = False


@dataclass(frozen=True)
class Quantity:
    """Something that has a symbol."""

    symbol: Symbol
    is_array: bool


@dataclass(frozen=True)
class Sum:
    """Terms that are added; one whose sign is minus is a :class:`Product` that says so."""

    terms: tuple[Expression, ...]

    @property
    def is_array(self) -> bool:
        return any(x.is_array for x in self.terms)


@dataclass(frozen=True)
class Product:
    """Factors above a line over factors below it, with a sign of 1 or -1."""

    sign: int
    above: tuple[Expression, ...]
    below: tuple[Expression, ...] = ()

    @property
    def is_array(self) -> bool:
        return any(x.is_array for x in (*self.above, *self.below))


@dataclass(frozen=True)
class Power:
    """A base to an exponent."""

    base: Expression
    exponent: Expression

    @property
    def is_array(self) -> bool:
        return self.base.is_array or self.exponent.is_array


@dataclass(frozen=True)
class Call:
    """Anything else, by the name of the operation; ``settings`` are its own."""

    name: str
    operands: tuple[Expression, ...]
    settings: tuple[Any, ...]
    is_array: bool


Expression: TypeAlias = Number | Quantity | Sum | Product | Power | Call


@dataclass(frozen=True)
class Line:
    """``symbol = expression``."""

    symbol: Symbol
    expression: Expression
    is_array: bool = True


def sum_of(*terms: Expression) -> Expression:
    """Return the sum, with what is positive in front."""
    flat: list[Expression] = []
    for term in terms:
        flat += term.terms if isinstance(term, Sum) else [term]
    flat = [x for x in flat if not (isinstance(x, Number) and x.value == 0)]
    if not flat:
        return Number(0.0)
    first = next((i for i, x in enumerate(flat) if not is_negative(x)), 0)
    flat.insert(0, flat.pop(first))
    return flat[0] if len(flat) == 1 else Sum(tuple(flat))


def negative(x: Expression) -> Expression:
    """Return -x."""
    if isinstance(x, Number):
        return Number(-x.value)
    if isinstance(x, Product):
        return replace(x, sign=-x.sign)
    return Product(-1, (x,))


def is_negative(x: Expression) -> bool:
    """Whether it begins with a minus."""
    return (isinstance(x, Product) and x.sign < 0) or (isinstance(x, Number) and x.value < 0)


def product_of(*above: Expression, below: Sequence[Expression] = ()) -> Expression:
    """Return the product of what is above, over the product of what is below."""
    sign = 1
    top: list[Expression] = []
    bottom: list[Expression] = []
    for factors, here, there in ((above, top, bottom), (below, bottom, top)):
        for x in factors:
            if isinstance(x, Product):
                sign *= x.sign
                here.extend(x.above)
                there.extend(x.below)
            elif isinstance(x, Number) and x.value < 0:
                sign, x = -sign, Number(-x.value)
                here.append(x)
            else:
                here.append(x)
    top, bottom = _numbers_joined(_powers_joined(top)), _numbers_joined(_powers_joined(bottom))
    if sign > 0 and not bottom and len(top) == 1:
        return top[0]
    if not top and not bottom:
        return Number(float(sign))
    return Product(sign, tuple(top), tuple(bottom))


def _numbers_joined(factors: Sequence[Expression]) -> list[Expression]:
    value = 1.0
    for x in factors:
        value *= x.value if isinstance(x, Number) else 1.0
    others: list[Expression] = [x for x in factors if not isinstance(x, Number)]
    return others if value == 1 else [Number(value), *others]


def _powers_joined(factors: Iterable[Expression]) -> list[Expression]:
    """Return the factors with x x as a square of x; negative powers apart, as x may be 0."""
    exponents: dict[tuple[Expression, bool], float] = {}
    for x in factors:
        base, exponent = x, 1.0
        if isinstance(x, Power) and isinstance(x.exponent, Number):
            base, exponent = x.base, x.exponent.value
        key = base, exponent > 0
        exponents[key] = exponents.get(key, 0.0) + exponent
    return [x if n == 1 else Power(x, Number(n)) for (x, _), n in exponents.items()]


def parts_of(x: Expression) -> tuple[Expression, ...]:
    """Return what an expression is made of."""
    if isinstance(x, Sum):
        return x.terms
    if isinstance(x, Product):
        return (*x.above, *x.below)
    if isinstance(x, Power):
        return (x.base, x.exponent)
    return x.operands if isinstance(x, Call) else ()


def quantities_in(x: Expression) -> list[Quantity]:
    """Return what an expression names, in the order in which it is read."""
    if isinstance(x, Quantity):
        return [x]
    return [found for part in parts_of(x) for found in quantities_in(part)]
