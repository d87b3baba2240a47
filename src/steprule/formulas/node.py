"""What a graph of expressions is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, eq=False)
class Node:
    """An input (``name`` is ``"input"``, ``settings`` what it is called), a number, or the result
    of an operation. Equal ones of a graph are one object.

    ``order`` is when the rule first came by it; a number ``follows_arrays`` if a sum over elements
    is in it.
    """

    name: str
    operands: tuple[Node, ...]
    settings: tuple[Any, ...]
    is_array: bool
    order: int
    follows_arrays: bool

    @property
    def is_leaf(self) -> bool:
        """Whether it is a number or an input."""
        return self.name in ("input", "number")

    @property
    def number(self) -> float | None:
        """What it is, if it is a number."""
        return self.settings[0] if self.name == "number" else None

    @property
    def is_step(self) -> bool:
        """Whether it is the number of the step, 1 at the first."""
        return self.name == "input" and self.settings == ("step",)
