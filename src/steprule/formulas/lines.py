"""Which results have a line of their own, and what they are called.

What a rule returns has one. So has what it uses twice, a choice between cases, and what would make
a line hard to read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from steprule.formulas.graph import Graph
from steprule.formulas.moments import with_corrected_moments
from steprule.formulas.node import Node
from steprule.formulas.symbols import (
    GRAD,
    LOCALS,
    NUMBERS,
    PARAM,
    SLOTS,
    STEP,
    Symbol,
    Time,
    symbol_of,
)
from steprule.formulas.tree import (
    Call,
    Expression,
    Line,
    Number,
    Power,
    Quantity,
    negative,
    product_of,
    sum_of,
)
from steprule.language.recording import TRUTHS, Value

# From so many operations on a result has its own line.
# An array that is used once, or several times.
_LONG, _SHARED = 20, 3
# A number: used once, by an array; several times; several times and it has a name.
_LONG_SCALAR, _SHARED_SCALAR, _SHARED_NAMED = 4, 4, 2
# One that has a name and is used once, by another number.
_NESTED_SCALAR = 8
# One that has a name and follows from sums over elements.
_MEASURED = 3


@dataclass(frozen=True)
class Formula:
    """A rule as lines of mathematics.

    Attributes:
        lines: in an order in which each can be computed.
        inputs: the symbols of param, grad, slots before the step and numbers, by name.
        outputs: the symbols of the new param and slots.
    """

    lines: tuple[Line, ...]
    inputs: Mapping[str, Symbol]
    outputs: Mapping[str, Symbol]


def formula_of(graph: Graph, local_names: Mapping[Value, str]) -> Formula:
    """Return the lines of a rule.

    Args:
        graph: its expressions.
        local_names: what its function calls its results.
    """
    return _Writer(graph, local_names).formula()


class _Writer:
    def __init__(self, graph: Graph, local_names: Mapping[Value, str]) -> None:
        self.graph = graph
        self.names: dict[Node, str] = {}
        for value, name in sorted(local_names.items(), key=lambda item: item[0].index):
            for node in graph.of_value(value):
                if not node.is_leaf:
                    self.names.setdefault(node, name)
        self.nodes = _reachable(graph)
        self.uses = Counter(x for node in self.nodes for x in node.operands)
        self.users = {x: node for node in self.nodes for x in node.operands}
        self.of_output = {node for node in graph.outputs.values() if not node.is_leaf}
        self.symbols: dict[Node, Symbol] = {}
        self.inputs: dict[str, Symbol] = {}
        # The time stands at every letter; weight decay is in some variants of an optimizer.
        self.taken: set[Symbol] = {STEP, NUMBERS["weight_decay"]}
        self.changing: dict[Node, bool] = {}

    def formula(self) -> Formula:
        self._name_inputs()
        lines = sorted(self._own_lines(), key=lambda node: node.order)
        outputs = self._name_outputs()
        for node in lines:
            if node not in self.symbols:
                self.symbols[node] = self._symbol_of_result(node)
        written = [
            Line(self.symbols[x], self._written(x, is_root=True), x.is_array)
            for x in _param_last(lines, self.graph.outputs["param"])
        ]
        same_as_others = [
            Line(outputs[name], self._written(node), node.is_array)
            for name, node in self.graph.outputs.items()
            if self._needs_line(name, node)
        ]
        slots = {symbol for name, symbol in outputs.items() if name != "param"}
        corrections = {self._written(node) for node in self.nodes if _is_correction(node)}
        lines_with_moments = with_corrected_moments(
            (*written, *same_as_others), slots, corrections, self.taken
        )
        return Formula(lines_with_moments, self.inputs, outputs)

    # Names.

    def _name_inputs(self) -> None:
        recording = self.graph.recording
        slots = [n for n in recording.outputs if n != "param" and recording.outputs[n] is not None]
        self._name_input("param", PARAM.at("t-1"))
        self._name_input("grad", GRAD.at("t"))
        for name in slots:
            symbol = self._symbol_of_slot(name)
            is_kept = self.graph.outputs[name] is self.graph.input(name)
            self._name_input(name, symbol.at("t" if is_kept else "t-1"))
        for name in ("step", "first"):
            if name in recording.scalar_inputs:
                self._name_input(name, STEP)
        numbers = [n for n in recording.scalar_inputs if n not in (*slots, "step", "first")]
        for name in sorted(numbers, key=lambda n: list(NUMBERS).index(n) if n in NUMBERS else 99):
            symbol = NUMBERS.get(name) or symbol_of(name)
            if symbol in self.taken and name != "weight_decay" and Symbol(name).is_word:
                symbol = Symbol(name)
            is_own = name == "weight_decay"  # its letter is kept for it
            self._name_input(name, symbol if is_own else symbol.unlike(self.taken))

    def _symbol_of_slot(self, name: str) -> Symbol:
        grad = self.graph.input("grad")
        if SLOTS.get(name, PARAM).base == "g" and self.graph.outputs[name] is grad:
            return GRAD
        symbol = SLOTS.get(name) or symbol_of(name)
        return symbol.with_accent(self.taken, symbol.accent)

    def _name_input(self, name: str, symbol: Symbol) -> None:
        node = self.graph.input(name)
        self.inputs[name] = symbol
        if node is not None:
            self.symbols[node] = symbol
            self.taken.add(symbol.letter)

    def _name_outputs(self) -> dict[str, Symbol]:
        outputs = {}
        for name, node in self.graph.outputs.items():
            symbol = self.inputs[name].at("t")
            outputs[name] = symbol
            if not node.is_leaf:
                self.symbols.setdefault(node, symbol)
        return outputs

    def _needs_line(self, name: str, node: Node) -> bool:
        """Tell whether it becomes an input, a number, or the same as another."""
        is_kept = node is self.graph.input(name) and name != "param"
        return not is_kept and self.symbols.get(node) != self.inputs[name].at("t")

    def _symbol_of_result(self, node: Node) -> Symbol:
        name = self.names.get(node, "")
        changes = self._changes(node)
        time: Time = "t" if changes else ""
        if name == "mu_next":
            return LOCALS[name].at("t+1")
        symbol, first = Symbol("u" if node.is_array else "a"), ""
        if name in self.inputs and name not in ("param", "grad", "step"):
            symbol, first = self.inputs[name], "tilde"
            if not symbol.time and changes and symbol.at("t") not in self.symbols.values():
                return symbol.at("t")
        elif name in LOCALS:
            symbol, first = LOCALS[name], "tilde" if name in ("param", "grad") else ""
        elif name:
            symbol = symbol_of(name)
        chosen = symbol.at("").with_accent(self.taken, first or symbol.accent)
        self.taken.add(chosen.letter)
        return chosen.at(time)

    def _changes(self, node: Node) -> bool:
        """Whether a result is another one at each step."""
        if node not in self.changing:
            is_input = node.name == "input"
            self.changing[node] = (
                node.is_array
                or (is_input and node.settings[0] in ("step", "first"))
                or (is_input and node.settings[0] in self.graph.recording.outputs)
                or any(map(self._changes, node.operands))
            )
        return self.changing[node]

    # Lines.

    def _own_lines(self) -> list[Node]:
        """Return the results that have a line."""
        costs: dict[Node, int] = {}
        lines = []
        choices_within = {
            node.operands[2] for node in self.nodes if node.name == "where"
        }  # in which further cases stand
        for node in self.nodes:
            if node.is_leaf:
                costs[node] = 0
                continue
            costs[node] = 1 + sum(costs[x] for x in node.operands)
            if node in self.of_output or self._deserves(node, costs[node], choices_within):
                lines.append(node)
                costs[node] = 0
        return lines

    def _deserves(self, node: Node, cost: int, choices_within: set[Node]) -> bool:
        """Whether a result that is not returned has a line."""
        uses, name = self.uses[node], self.names.get(node)
        if node.name in TRUTHS or node.name == "divides":
            return False
        if node.name == "where":
            return uses > 1 or node not in choices_within
        if node.name == "sandwiched":
            return True
        if self._is_plain(node):
            return False
        if name == "grad":
            return True
        if node.is_array:
            return cost >= _LONG if uses < 2 else bool(name) or cost >= _SHARED
        if name and node.follows_arrays and cost >= _MEASURED:
            return True
        if uses > 1:
            return cost >= (_SHARED_NAMED if name else _SHARED_SCALAR)
        least = _LONG_SCALAR if self.users[node].is_array else _NESTED_SCALAR
        return bool(name) and cost >= least

    def _is_plain(self, node: Node) -> bool:
        """Whether it is as short as a symbol: a square, a norm, a corrected moment of one."""
        if _is_correction(node):
            return True
        if node.name == "div" and node.operands[0] in self.of_output:
            return _is_correction(node.operands[1])
        is_short = node.name in ("pow", "norm", "norm1", "abs", "sign", "sqrt", "neg", "rms")
        return (
            is_short
            and self.names.get(node) != "grad"
            and all(x.is_leaf or x in self.of_output for x in node.operands)
        )

    # Expressions.

    def _written(self, node: Node, is_root: bool = False) -> Expression:
        if node.number is not None:
            return Number(node.number)
        if node.name == "input" and node.settings[0] == "first":
            return Call("eq", (Quantity(STEP, False), Number(1.0)), (), False)
        if node in self.symbols and not is_root:
            return Quantity(self.symbols[node], node.is_array)
        x = [self._written(operand) for operand in node.operands]
        return self._applied(node, x)

    @staticmethod
    def _applied(node: Node, x: list[Expression]) -> Expression:
        match node.name:
            case "add":
                return sum_of(*x)
            case "sub":
                return sum_of(x[0], negative(x[1]))
            case "neg":
                return negative(x[0])
            case "mul":
                return product_of(*x)
            case "div":
                return product_of(x[0], below=x[1:])
            case "pow":
                return product_of(Power(x[0], x[1]))
        return Call(node.name, tuple(x), node.settings, node.is_array)


def _is_correction(node: Node) -> bool:
    """Whether it is 1 - beta**t."""
    if node.name != "sub" or node.operands[0].number != 1 or node.operands[1].name != "pow":
        return False
    exponent = node.operands[1].operands[1]
    return exponent.is_step


def _reachable(graph: Graph) -> list[Node]:
    """Return the nodes that outputs are made of, operands first."""
    found: dict[Node, None] = {}

    def visit(node: Node) -> None:
        if node not in found:
            for x in node.operands:
                visit(x)
            found[node] = None

    for output in graph.outputs.values():
        visit(output)
    return list(found)


def _param_last(lines: list[Node], param: Node) -> list[Node]:
    """Return the lines in order, that of the new param as late as others allow."""
    if param not in lines:
        return lines
    needs = {node: {node} for node in lines}
    for node in lines:
        stack = list(node.operands)
        while stack:
            x = stack.pop()
            needs[node].add(x)
            if x not in needs:
                stack += x.operands
            else:
                needs[node] |= needs[x]
    before = [x for x in lines if param not in needs[x]]
    return [*before, param, *(x for x in lines if param in needs[x] and x is not param)]
