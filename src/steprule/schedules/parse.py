"""Reading a schedule from text, without ever evaluating it.

The text is parsed to a syntax tree, and only schedule calls, their methods, numbers, strings,
lists, tuples, dicts and products are accepted. Anything else is an error that points at its
column.
"""

from __future__ import annotations

import ast
import inspect
import operator
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from steprule.schedules.base import Schedule, shapes
from steprule.schedules.limits import is_too_deep

METHODS = ("then", "warmup", "clip", "repeat")
LONGEST = 10_000


class ParseError(ValueError):
    """Text that is not a schedule; the message shows the text with a mark under the column.

    Attributes:
        column: where the trouble begins, counted from 1.
    """

    def __init__(self, problem: str, text: str, column: int) -> None:
        super().__init__(f"{problem}\n  {text}\n  {' ' * (column - 1)}^ column {column}")
        self.column = column


def parse(text: str) -> Schedule:
    """Read a schedule written as Python, such as its `repr`.

    Args:
        text: one expression, for example `"cosine(0.1, 0, steps=90).warmup(5)"`.

    Raises:
        ParseError: not an expression, or one with anything but schedules and plain values.
        TypeError: `text` is no text.

    Example:
        >>> parse("0.5 * cosine(0.1, 0, steps=90)")
        cosine(0.1, 0, steps=90) * 0.5
    """
    if not isinstance(text, str):
        raise TypeError(f"text must be a schedule written as text, got {text!r}")
    result = Reader(text).read()
    if not isinstance(result, Schedule):
        raise ParseError(f"expected a schedule, got the plain value {result!r}", text, 1)
    return result


def parse_value(text: str) -> Any:
    """Read a plain value or a schedule, under the same rules as `parse`."""
    return Reader(text).read()


def names() -> list[str]:
    """Return the names of the schedules that text may call."""
    return sorted(name for name, shape in shapes().items() if shape.__module__.startswith(_HERE))


_HERE = f"{__package__}."


class Reader:
    """Reads one expression; errors point into `shown`, the text as the user wrote it."""

    def __init__(self, text: str, shown: str | None = None) -> None:
        self.source = text.strip()
        self.text = self.source if shown is None else shown.strip()

    def tree(self) -> ast.expr:
        """Return the syntax tree of the text.

        Raises:
            ParseError: too long, more than one line, or not an expression.
        """
        if len(self.source) > LONGEST:
            raise ParseError(f"longer than {LONGEST} characters", self.text[:40] + "...", 1)
        if "\n" in self.source:
            raise ParseError("expected one line", self.text.splitlines()[0], 1)
        if not self.source:
            raise ParseError("nothing to read: write a schedule", self.text, 1)
        try:
            with warnings.catch_warnings():
                # "5cosine" and the like only warn in some versions of Python.
                warnings.simplefilter("error")
                tree = ast.parse(self.source, mode="eval").body
        except SyntaxError as error:
            column = min(max(error.offset or 1, 1), len(self.text) + 1)
            raise ParseError(f"cannot read this: {error.msg}", self.text, column) from None
        except (RecursionError, MemoryError):
            raise ParseError("nested too deeply", self.text, 1) from None
        except ValueError as error:
            raise ParseError(f"cannot read this: {error}", self.text, 1) from None
        if is_too_deep(tree):
            raise ParseError("nested too deeply", self.text, 1)
        return tree

    def read(self) -> Any:
        """Return the value of the expression."""
        try:
            return self.value(self.tree())
        except RecursionError:
            raise ParseError("nested too deeply", self.text, 1) from None

    def fail(self, node: ast.AST, problem: str) -> NoReturn:
        """Raise, pointing at where `node` begins."""
        offset = getattr(node, "col_offset", 0)
        column = len(self.source.encode()[:offset].decode(errors="ignore")) + 1
        raise ParseError(problem, self.text, column)

    def value(self, node: ast.expr) -> Any:
        """Return the value of one node; anything not expected here is refused."""
        match node:
            case ast.Constant(value=bool() | int() | float() | str() | None):
                return node.value
            case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
                return self.signed(node, operand)
            case ast.BinOp(op=ast.Mult(), left=left, right=right):
                return self.product(node, self.value(left), self.value(right))
            case ast.List(elts=items):
                return [self.value(item) for item in items]
            case ast.Tuple(elts=items):
                return tuple(self.value(item) for item in items)
            case ast.Dict():
                return self.mapping(node)
            case ast.Call():
                return self.call(node)
            case ast.Name(id=name):
                self.fail(node, f"{name!r} is not a value; schedules are called: {name}(...)")
        return self.fail(node, "expected a schedule, a number, or a list of them")

    def mapping(self, node: ast.Dict) -> dict[Any, Any]:
        """Return a dict with numbers for keys."""
        result: dict[Any, Any] = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                self.fail(node, "** is not allowed")
            number = self.value(key)
            if not isinstance(number, (int, float)):
                self.fail(key, "the keys of a dict must be numbers")
            result[number] = self.value(value)
        return result

    def signed(self, node: ast.UnaryOp, operand: ast.expr) -> Any:
        """Return a number behind a sign."""
        number = self.value(operand)
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            self.fail(node, "a sign needs a number")
        return -number if isinstance(node.op, ast.USub) else number

    def product(self, node: ast.BinOp, left: Any, right: Any) -> Any:
        """Return a schedule times a number or a schedule."""
        if not (isinstance(left, Schedule) or isinstance(right, Schedule)):
            self.fail(node, "one side of * must be a schedule")
        return self.run(node, operator.mul, [left, right], {})

    def call(self, node: ast.Call) -> Any:
        """Return a schedule, or a method of one, with its arguments."""
        arguments = [self.value(argument) for argument in node.args]
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                self.fail(keyword.value, "** is not allowed")
            keywords[keyword.arg] = self.value(keyword.value)
        match node.func:
            case ast.Name(id=name):
                if name not in names():
                    self.fail(node, f"unknown schedule {name!r}; known: {', '.join(names())}")
                make = shapes()[name]
            case ast.Attribute(value=owner, attr=name):
                schedule = self.value(owner)
                if not isinstance(schedule, Schedule):
                    self.fail(owner, f".{name} needs a schedule before it")
                if name not in METHODS:
                    known = ", ".join(METHODS)
                    self.at_attribute(node.func, f"unknown method .{name}; known: {known}")
                make = getattr(schedule, name)
            case _:
                self.fail(node, "only schedules and their methods can be called")
        return self.run(node, make, arguments, keywords)

    def at_attribute(self, node: ast.expr, problem: str) -> NoReturn:
        """Point at the name behind the dot rather than at what stands before it."""
        assert isinstance(node, ast.Attribute)
        end = len(self.source.encode()[: node.end_col_offset].decode(errors="ignore"))
        raise ParseError(problem, self.text, end - len(node.attr) + 1)

    def run(
        self,
        node: ast.expr,
        make: Callable[..., Any],
        arguments: list[Any],
        keywords: dict[str, Any],
    ) -> Any:
        """Call `make`; on a bad argument, point at that argument."""
        where: dict[str, ast.expr] = {}
        if isinstance(node, ast.Call):
            parameters = list(inspect.signature(make).parameters)
            where = dict(zip(parameters, node.args, strict=False))
            for keyword in node.keywords:
                name = str(keyword.arg)
                if name not in parameters:
                    self.fail(
                        keyword, f"no argument {name!r} here; there are {', '.join(parameters)}"
                    )
                where[name] = keyword.value
        try:
            return make(*arguments, **keywords)
        except (TypeError, ValueError) as error:
            culprit = where.get(str(error).split(" ", 1)[0], node)
            self.fail(
                culprit, str(error).replace(".__init__() m", " is m").replace(".__init__()", "")
            )
