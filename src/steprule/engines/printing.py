"""A recording's operations as expressions of some language: shared by all engines that print.

An engine brings a :class:`Spelling`; what is said here holds in any language: where a truth value
or a number is needed, and which scalars an array operation divides by.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from steprule.language.recording import CONDITIONS, TRUTHS, Operation, Recording, Value


@dataclass(frozen=True)
class Spelling:
    """How a language writes operations and constants.

    Attributes:
        templates: for each operation its expression: ``{0}``, ``{1}``… are the operands,
            ``{number}`` the computing dtype, ``{zero}`` and ``{one}`` constants of it.
        literal: writes a constant in the computing dtype named.
    """

    templates: Mapping[str, str]
    literal: Callable[[float, str], str]


class ExpressionPrinter:
    """Prints operations on quantities that have names, in one computing dtype.

    Args:
        spelling: of the language.
        names: of each quantity; the caller adds those of results as they are printed.
        number: the computing dtype.
        truths: the quantities that are truth values.
    """

    def __init__(
        self, spelling: Spelling, names: dict[Value, str], number: str, truths: set[Value]
    ) -> None:
        self.names = names
        self._spelling, self._number, self._truths = spelling, number, truths

    def expression(self, operation: Operation) -> str:
        """Return the expression of an operation's result."""
        conditions = CONDITIONS.get(operation.name, 0)
        operands = [
            self._condition(x) if i < conditions else self.number(x)
            for i, x in enumerate(operation.operands)
        ]
        zero, one = self._plain(0.0), self._plain(1.0)
        template = self._spelling.templates[operation.name]
        return template.format(*operands, zero=zero, one=one, number=self._number)

    def number(self, x: Value | float) -> str:
        """Return a quantity where a number is needed: a truth value is 1 or 0 there."""
        return f"{self._number}({self._plain(x)})" if x in self._truths else self._plain(x)

    def _condition(self, x: Value | float) -> str:
        """Return a quantity where a truth value is needed: any number but 0 is true there."""
        if x in self._truths:
            return self._plain(x)
        return f"({self._plain(x)} != {self._plain(0.0)})"

    def _plain(self, x: Value | float) -> str:
        if isinstance(x, Value):
            return self.names[x]
        return self._spelling.literal(x, self._number)


def truths_of(recording: Recording) -> set[Value]:
    """Return the results that are truth values."""
    operations = (*recording.scalar_operations, *recording.tensor_operations)
    return {operation.result for operation in operations if operation.name in TRUTHS}


def scalar_divisors(recording: Recording) -> list[Value]:
    """Return the scalars that arrays are divided by, in the order of first use."""
    found = [
        operation.operands[1] for operation in recording.array_operations if operation.name == "div"
    ]
    return list(dict.fromkeys(x for x in found if isinstance(x, Value) and x.is_scalar))
