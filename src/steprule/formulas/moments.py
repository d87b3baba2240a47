"""Averages that are corrected for starting at 0: the papers' m-hat and v-hat.

Rules correct step sizes and roots instead, which saves operations: ``lr / (1 - beta**t) * m``. On
paper the correction belongs to the average.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace

from steprule.formulas.symbols import Symbol
from steprule.formulas.tree import (
    Call,
    Expression,
    Line,
    Number,
    Power,
    Product,
    Quantity,
    Sum,
    product_of,
    sum_of,
)


def with_corrected_moments(
    lines: Iterable[Line],
    averages: Collection[Symbol],
    divisors: Collection[Expression],
    taken: set[Symbol],
) -> tuple[Line, ...]:
    """Return the lines with those of corrected averages before the ones that need them.

    Args:
        lines: in an order in which each can be computed.
        averages: what may be corrected.
        divisors: what they are divided by then, such as ``1 - beta^t``.
        taken: symbols that are; those of the new lines are added.
    """
    corrections = _Corrections(averages, divisors, taken)
    for line in lines:
        expression = corrections.made_in(line.expression)
        corrections.lines.append(replace(line, expression=expression))
    return tuple(corrections.lines)


class _Corrections:
    def __init__(
        self, averages: Collection[Symbol], divisors: Collection[Expression], taken: set[Symbol]
    ) -> None:
        self.averages, self.divisors, self.taken = averages, divisors, taken
        self.lines: list[Line] = []
        self.known: dict[tuple[Symbol, Expression], Symbol] = {}

    def made_in(self, x: Expression) -> Expression:
        """Return an expression with corrected averages in the place of their corrections."""
        if isinstance(x, Sum):
            return sum_of(*map(self.made_in, x.terms))
        if isinstance(x, Power):
            return Power(self.made_in(x.base), self.made_in(x.exponent))
        if isinstance(x, Call):
            return replace(x, operands=tuple(map(self.made_in, x.operands)))
        return self._in_product(x) if isinstance(x, Product) else x

    def _in_product(self, x: Product) -> Expression:
        above, below = list(x.above), list(x.below)
        for factor in x.below:
            for i, candidate in enumerate(above):
                moment = self._moment(candidate, factor)
                if moment is not None:
                    below.remove(factor)
                    above[i] = moment
                    break
        signed = [Number(-1.0)] if x.sign < 0 else []
        return product_of(*signed, *map(self.made_in, above), below=[*map(self.made_in, below)])

    def _moment(self, above: Expression, below: Expression) -> Expression | None:
        """Return ``above / below`` if it is a corrected average, or the root of one."""
        if isinstance(above, Call) and isinstance(below, Call):
            if (above.name, below.name) != ("sqrt", "sqrt"):
                return None
            inside = self._moment(above.operands[0], below.operands[0])
            return None if inside is None else replace(above, operands=(inside,))
        if not (isinstance(above, Quantity) and above.symbol in self.averages):
            return None
        return self._corrected(above, below) if below in self.divisors else None

    def _corrected(self, average: Quantity, correction: Expression) -> Quantity:
        key = (average.symbol, correction)
        if key not in self.known:
            hat = average.symbol.letter.with_accent(self.taken, "hat").at("t")
            self.taken.add(hat.letter)
            self.known[key] = hat
            self.lines.append(Line(hat, product_of(average, below=[correction])))
        return Quantity(self.known[key], is_array=True)
