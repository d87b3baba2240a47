"""The numbers of each row and column that a rule has."""

from __future__ import annotations

from collections.abc import Iterable

from steprule.language.recording import Operation, Recording, Value


def each_values(recording: Recording, each: str) -> list[Value]:
    """Return the quantities of each row, or column: what the workspace has room for."""
    found = [*recording.each_inputs.values(), *(x.result for x in recording.tensor_operations)]
    return [value for value in found if value.each == each]


def each_places(recording: Recording) -> dict[str, dict[Value, int]]:
    """Return which row of the workspace each of them has, among those of rows and of columns."""
    return {
        each: {v: i for i, v in enumerate(each_values(recording, each))}
        for each in ("row", "column")
    }


def each_operands(operations: Iterable[Operation]) -> list[Value]:
    """Return the numbers of rows and columns that operations read, in order."""
    read = (x for operation in operations for x in operation.operands)
    return list(dict.fromkeys(x for x in read if isinstance(x, Value) and x.each is not None))


def each_of(operation: Operation) -> str | None:
    """Return of what the operands are that there is one of each: rows or columns."""
    return next((x.each for x in operation.operands if isinstance(x, Value) and x.each), None)


def is_of_arrays(operation: Operation) -> bool:
    """Tell whether an operation reads elements."""
    return any(isinstance(x, Value) and x.is_array for x in operation.operands)
