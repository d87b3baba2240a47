"""A table of steps and values: a tuple of rows that prints in columns."""

from __future__ import annotations


class Table(tuple[tuple[int, float], ...]):
    """Rows (step, value). Index and unpack it as a tuple; print it to read it."""

    __slots__ = ()

    def __str__(self) -> str:
        width = max([len("step"), *(len(str(step)) for step, _ in self)])
        rows = [f"{step:>{width}}  {value!r}" for step, value in self]
        return "\n".join([f"{'step':>{width}}  value", *rows])
