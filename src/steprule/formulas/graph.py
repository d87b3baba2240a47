"""A recording as a graph of expressions in which equal ones are the same, and dead branches gone.

Left out is what the values of options make nothing: terms with a weight of 0, the other branch of a
choice, a bound that is never met.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from steprule.formulas.node import Node
from steprule.formulas.step_conditions import follows_from, starts_again
from steprule.language.recording import (
    NUMBER_OPERATIONS,
    REDUCTIONS,
    TRUTHS,
    Operation,
    Recording,
    Value,
)

_COMPARISONS = TRUTHS - {"and", "or", "not"}
Assumed = frozenset[tuple[Node, bool]]


@dataclass
class Graph:
    """The expressions of one recording.

    Attributes:
        recording: what was recorded.
        zeros: inputs that are 0, whose terms are left out.
        values: those whose values decide which case of a choice holds; nan is an option that is
            None.
    """

    recording: Recording
    zeros: Collection[str] = ()
    values: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        recording = self.recording
        self._nodes: dict[tuple[Any, ...], Node] = {}
        self._built: dict[tuple[Value, Assumed], Node] = {}
        self._returned = {x for x in recording.outputs.values() if isinstance(x, Value)}
        self._order = 0
        self._made: dict[Value, Operation] = {
            x.result: x for x in (*recording.scalar_operations, *recording.tensor_operations)
        }
        inputs = {**recording.array_inputs, **recording.each_inputs, **recording.scalar_inputs}
        self._inputs: dict[Value, Node] = {}
        for name, value in inputs.items():
            if name in self.zeros:
                self._inputs[value] = self._number(0)
            else:
                self._inputs[value] = self._new("input", (), (name,), not value.is_scalar)
        self.outputs: dict[str, Node] = {
            name: self._of(x, frozenset()) for name, x in recording.outputs.items() if x is not None
        }

    def input(self, name: str) -> Node | None:
        """Return the node of an input; None if it is known, or none."""
        return self._nodes.get(("input", (), (name,)))

    def of_value(self, value: Value) -> list[Node]:
        """Return what stands for a quantity of the recording, in one case and another."""
        return [node for (built, _), node in self._built.items() if built == value]

    def _of(self, x: Value | float, assumed: Assumed) -> Node:
        """Return the node of a quantity, where some conditions are known to hold, or not to."""
        if not isinstance(x, Value):
            return self._number(x)
        if x in self._inputs:
            return self._inputs[x]
        if x in self._returned:  # which has a line that says it, in all cases
            assumed = frozenset()
        if (x, assumed) not in self._built:
            self._built[x, assumed] = self._result(self._made[x], assumed)
        return self._built[x, assumed]

    def _result(self, operation: Operation, assumed: Assumed) -> Node:
        if operation.name == "where":
            condition = self._of(operation.operands[0], assumed)
            for known, holds in assumed:
                if known is condition:
                    return self._of(operation.operands[1 if holds else 2], assumed)
            if condition.number is not None:
                return self._of(operation.operands[1 if condition.number else 2], assumed)
            then = self._of(operation.operands[1], assumed | {(condition, True)})
            other = self._of(operation.operands[2], assumed | {(condition, False)})
            self._order = operation.result.index
            return self._where(condition, then, other)
        operands = [self._of(x, assumed) for x in operation.operands]
        self._order = operation.result.index
        if operation.name in REDUCTIONS:
            how = (operation.over, operation.axis)
            return self._reduced(operation.name, operands, how, not operation.result.is_scalar)
        if operation.name == "inverse_root":
            gram, root, weight, eps, is_due = operands
            made = self._new("root_of", (gram, weight, eps), operation.settings, True)
            return self._where(is_due, made, root)
        if operation.name == "eigenbasis":
            gram, basis, anew, refined = operands
            made = self._new("refined_basis", (gram, basis), (), True)
            kept = self._where(refined, made, basis)
            return self._where(anew, self._new("basis_of", (gram,), (), True), kept)
        if operation.settings or operation.name in ("orthogonalized", "sandwiched", "gram"):
            return self._new(operation.name, tuple(operands), operation.settings, True)
        return self._apply(operation.name, *operands)

    def _number(self, x: float) -> Node:
        return self._new("number", (), (float(x),), False)

    def _new(
        self, name: str, operands: tuple[Node, ...], settings: tuple[Any, ...], is_array: bool
    ) -> Node:
        key = (name, operands, settings if name != "number" else repr(settings))
        if key not in self._nodes:
            follows = is_array or any(x.follows_arrays for x in operands)
            self._nodes[key] = Node(name, operands, settings, is_array, self._order, follows)
        return self._nodes[key]

    def _where(self, condition: Node, then: Node, other: Node) -> Node:
        if condition.number is not None:
            return then if condition.number else other
        if then is other:
            return then
        is_array = any(x.is_array for x in (condition, then, other))
        return self._new("where", (condition, then, other), (), is_array)

    def _reduced(
        self, name: str, operands: list[Node], how: tuple[Any, ...], is_array: bool
    ) -> Node:
        (x, *more) = operands
        if name == "dot_of" and more[0] is x:
            return self._new("square_norm", (x,), how, is_array)
        if name == "sum_of" and x.name == "abs":
            return self._new("norm1", x.operands, how, is_array)
        return self._new(name, tuple(operands), how, is_array)

    def _apply(self, name: str, *operands: Node) -> Node:
        """Return an operation's result, simplified where numbers are known."""
        simple = self._simplified(name, operands)
        if simple is not None:
            return simple
        numbers = [x.number for x in operands]
        if None not in numbers:
            try:
                return self._number(NUMBER_OPERATIONS[name](*numbers))
            except (ArithmeticError, ValueError):
                pass  # such as 1 / 0, which stays as it stands
        return self._new(name, tuple(operands), (), any(x.is_array for x in operands))

    def _simplified(self, name: str, operands: tuple[Node, ...]) -> Node | None:
        x, y = operands[0], operands[-1]
        match name:
            case "add":
                return self._sum(x, y)
            case "sub":
                return self._difference(x, y)
            case "mul":
                return self._product(x, y)
            case "div":
                return x if x.number == 0 or y.number == 1 else None
            case "neg":
                return x.operands[0] if x.name == "neg" else None
            case "pow":
                return self._power(x, y)
            case "maximum" | "minimum":
                return self._bound(name, x, y)
            case "sqrt":
                return self._root(x)
        return self._condition(name, x, y) if name in TRUTHS else None

    def _sum(self, x: Node, y: Node) -> Node | None:
        if x.number == 0 or y.number == 0:
            return y if x.number == 0 else x
        return self._lerp(x, y)

    def _difference(self, x: Node, y: Node) -> Node | None:
        if x.number == 0 or y.number == 0:
            return x if y.number == 0 else self._apply("neg", y)
        return y.operands[1] if y.name == "sub" and y.operands[0] is x else None

    def _root(self, x: Node) -> Node | None:
        if x.name == "square_norm":
            return self._new("norm", x.operands, x.settings, x.is_array)
        if x.name == "mean_of" and _is_square(x.operands[0]):
            return self._new("rms", x.operands[0].operands[:1], x.settings, x.is_array)
        return None

    def _product(self, x: Node, y: Node) -> Node | None:
        for one, other in ((x, y), (y, x)):
            if one.number == 0:
                return one
            if one.number == 1:
                return other
        return self._new("pow", (x, self._number(2)), (), x.is_array) if x is y else None

    def _power(self, x: Node, y: Node) -> Node | None:
        if y.number == 0:
            return self._number(1)
        if y.number == 1:
            return x
        return self._apply("div", self._number(1), x) if y.number == -1 else None

    def _lerp(self, x: Node, y: Node) -> Node | None:
        """Return a + w (b - a) as (1 - w) a + w b, as the papers have it."""
        if y.name != "mul":
            return None
        weight, gap = y.operands
        if gap.name != "sub" or gap.operands[1] is not x:
            return None
        kept = self._apply("mul", self._apply("sub", self._number(1), weight), x)
        return self._apply("add", kept, self._apply("mul", weight, gap.operands[0]))

    def _bound(self, name: str, x: Node, y: Node) -> Node | None:
        if x is y:
            return x
        for one, other in ((x, y), (y, x)):
            # Steps are counted from 1.
            if one.is_step and other.number == 1:
                return other if name == "minimum" else one
            if name == "minimum" and other.number == math.inf:
                return one
        if name == "minimum" and x.name == "maximum":
            low = x.operands[1]
            if (low.number, y.number) == (-math.inf, math.inf):
                return x.operands[0]
            if x.operands[0].is_array and not low.is_array and not y.is_array:
                return self._new("clip", (x.operands[0], low, y), (), True)
        if name == "maximum" and y.number == -math.inf:
            return x
        return None

    def _condition(self, name: str, x: Node, y: Node) -> Node | None:
        if x is y and name in ("eq", "ne"):
            # How a rule asks for an option that may be None, which comes as nan.
            value = self._value_of(x)
            is_there = value is None or value == value
            return self._number(is_there == (name == "eq"))
        if name in _COMPARISONS:
            a, b = self._value_of(x), self._value_of(y)
            if a is not None and b is not None:
                return self._number(NUMBER_OPERATIONS[name](a, b))
            return self._of_steps(name, x, y)
        if name in ("and", "or"):
            return self._connected(name, x, y)
        return None

    def _connected(self, name: str, x: Node, y: Node) -> Node | None:
        """Return what is left of two conditions of which one is known, or says the other."""
        decides = float(name == "or")  # what alone makes it true, or false
        for one, other in ((x, y), (y, x)):
            if one.number is not None:
                return one if bool(one.number) == decides else other
            start = starts_again(one, other) if name == "or" else None
            if start is not None:
                return self._apply("and", one.operands[0], self._apply("ge", *start))
            if name == "and" and follows_from(one, other):
                return one
        return x if x is y else None

    def _of_steps(self, name: str, x: Node, y: Node) -> Node | None:
        """Return a condition on the number of steps as simply as it can be said."""
        if name == "ge" and x.name == "mul" and x.operands[0].name == "floor":
            ratio, divisor = x.operands[0].operands[0], x.operands[1]
            if ratio.name == "div" and ratio.operands == (y, divisor):
                return self._new("divides", (divisor, y), (), False)
        if y.number is None or x.name not in ("sub", "input"):
            return None
        if x.name == "sub" and x.operands[0].is_step and x.operands[1].number is not None:
            moved = self._number(y.number + x.operands[1].number)
            return self._apply(name, x.operands[0], moved)
        if x.is_step and name == "lt" and y.number == 2:
            return self._apply("eq", x, self._number(1))
        return None

    def _value_of(self, x: Node) -> float | None:
        """Return what an option, or a number, is known to be."""
        return self.values.get(x.settings[0]) if x.name == "input" else x.number


def _is_square(x: Node) -> bool:
    return x.name == "pow" and x.operands[1].number == 2
