"""The kernels' language (``engines/compiler/`` has the CPU's) turned into Triton's.

What is a number there is a tile of numbers here: choices are ``tl.where``, loads and stores have a
mask. An address is an int64; a table is a pointer, one of the kernel's arguments.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from steprule.engines.gpu.arguments import TABLES

# Types in memory; bytes are read without their sign, and all are computed with in 32 bits at least.
_STORED = {
    "int64": "tl.int64",
    "float64": "tl.float64",
    "float32": "tl.float32",
    "float16": "tl.float16",
    "bfloat16": "tl.bfloat16",
    "uint8": "tl.uint8",
    "int16": "tl.int16",
}
_READ_AS = {
    "float16": "tl.float32",
    "bfloat16": "tl.float32",
    "uint8": "tl.int32",
    "int16": "tl.int32",
}
_CONSTANTS = {"inf": 'float("inf")', "neg_inf": '-float("inf")', "nan": 'float("nan")'}
# Operations on whole numbers that are known now.
_FOLDED: Mapping[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
}
# What `words.py` has for the words of the language, by the number of arguments.
_WORDS = {
    "sqrt": "words.root",
    "exp": "words.exp",
    "expm1": "words.expm1",
    "log": "words.log",
    "log1p": "words.log1p",
    "tanh": "words.tanh",
    "floor": "words.floor",
    "lshr": "words.shifted_right",
    "abs": "tl.abs",
    "largest": "tl.maximum",
    "smallest": "tl.minimum",
    "min": "tl.minimum",
}


def tile_statements(
    lines: Iterable[str],
    *,
    mask: str | None = None,
    suffix: str = "",
    constants: Mapping[str, int] | None = None,
    shared: Collection[str] = (),
) -> list[str]:
    """Return statements of the kernels' language as Triton's.

    Args:
        lines: the statements, without loops or conditions.
        mask: a truth value for each element, of which are there; None if all are, and whatever has
            an address lies at a multiple of 16 bytes.
        suffix: what names that are given a value here end with.
        constants: names that stand for whole numbers.
        shared: names that get the suffix although they are given their value elsewhere.
    """
    tree = ast.parse("\n".join(lines))
    local = {*shared} | {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AugAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    }
    translator = _Translator(mask, suffix, local, constants or {})
    return ast.unparse(ast.fix_missing_locations(translator.visit(tree))).splitlines()


class _Translator(ast.NodeTransformer):
    def __init__(
        self, mask: str | None, suffix: str, local: set[str], constants: Mapping[str, int]
    ) -> None:
        self._mask, self._suffix = mask, suffix
        self._local, self._numbers = local, constants

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id in self._numbers:
            return ast.Constant(self._numbers[node.id])
        if node.id in self._local:
            return ast.Name(node.id + self._suffix, node.ctx)
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.expr:
        # A bare number with a point is of 64 bits.
        return _full(repr(node.value), "float64") if isinstance(node.value, float) else node

    def visit_IfExp(self, node: ast.IfExp) -> ast.expr:
        parts = [self.visit(x) for x in (node.test, node.body, node.orelse)]
        return _call("tl.where", *parts)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.visit(node.operand)
        if isinstance(node.op, ast.Not):
            return ast.Compare(operand, [ast.Eq()], [ast.Constant(0)])
        if isinstance(operand, ast.Constant) and isinstance(operand.value, int):
            return ast.Constant(-operand.value)
        return ast.UnaryOp(node.op, operand)

    def visit_BinOp(self, node: ast.BinOp) -> ast.expr:
        left, right = self.visit(node.left), self.visit(node.right)
        folded = ast.BinOp(left, node.op, right)
        if isinstance(left, ast.Constant) and isinstance(right, ast.Constant):
            number = _FOLDED[type(node.op)](left.value, right.value)
            return ast.Constant((number + 2**31) % 2**32 - 2**31)  # words wrap round
        words = {ast.Div: "words.quotient", ast.Pow: "words.power"}
        word = words.get(type(node.op))
        return folded if word is None else _call(word, left, right)

    def visit_Call(self, node: ast.Call) -> ast.expr:
        assert isinstance(node.func, ast.Name)
        name, arguments = node.func.id, node.args
        kind, _, stored = name.partition("_")
        if kind in ("load", "store") and stored in _STORED:
            return (self._load if kind == "load" else self._store)(stored, *arguments)
        if kind == "rounded":
            return _cast(_cast(self.visit(arguments[0]), _STORED[stored]), "tl.float32")
        if name in ("float32", "float64", "int32", "int64"):
            return self._converted(name, arguments[0])
        if name in ("bits_of", "float_of"):
            to = "tl.int32" if name == "bits_of" else "tl.float32"
            return _cast(self.visit(arguments[0]), to, bitcast=True)
        return _call(_WORDS[name], *map(self.visit, arguments))

    def _converted(self, to: str, argument: ast.expr) -> ast.expr:
        if to.startswith("float"):
            text = _constant_text(argument)
            if text is not None:
                return _full(text, to)
        value = self.visit(argument)
        if isinstance(value, ast.Constant) and to.startswith("int"):
            return value  # as wide as what it meets
        return _cast(value, f"tl.{to}")

    def _load(self, stored: str, address: ast.expr, index: ast.expr) -> ast.expr:
        place, mask = self._place(stored, address, index)
        loaded = _call("tl.load", place, *mask)
        return _cast(loaded, _READ_AS[stored]) if stored in _READ_AS else loaded

    def _store(self, stored: str, address: ast.expr, index: ast.expr, value: ast.expr) -> ast.expr:
        place, mask = self._place(stored, address, index)
        number = self.visit(value)
        if stored in ("float16", "bfloat16"):  # from float64 it is rounded twice, as everywhere
            number = _cast(number, "tl.float32")
        return _call("tl.store", place, _cast(number, _STORED[stored]), *mask)

    def _place(
        self, stored: str, address: ast.expr, index: ast.expr
    ) -> tuple[ast.expr, list[ast.expr]]:
        """Return the pointer to an element, and the mask as an argument, if there is any."""
        if isinstance(address, ast.Name) and address.id in TABLES:
            return ast.BinOp(address, ast.Add(), self.visit(index)), []
        offset = self.visit(index)
        if isinstance(address, ast.BinOp):  # bytes, counted from a name's address
            assert isinstance(address.op, ast.Add)
            assert stored == "uint8"
            offset = ast.BinOp(self.visit(address.right), ast.Add(), offset)
            address = address.left
        pointer = _cast(self.visit(address), f"tl.pointer_type({_STORED[stored]})")
        if isinstance(offset, ast.Constant) and offset.value == 0:
            return pointer, []  # one number, which is there
        if self._mask is None:
            pointer = _call("tl.multiple_of", pointer, ast.Constant(16))
            return ast.BinOp(pointer, ast.Add(), offset), []
        return ast.BinOp(pointer, ast.Add(), offset), [_parsed(self._mask)]


def _constant_text(node: ast.expr) -> str | None:
    """Return a constant as Triton has it; None if it is none."""
    if isinstance(node, ast.Name):
        return _CONSTANTS.get(node.id)
    sign = ""
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        sign, node = "-", node.operand
    is_number = isinstance(node, ast.Constant) and isinstance(node.value, int | float)
    return f"{sign}{float(node.value)!r}" if is_number else None  # type: ignore[attr-defined]


def _full(text: str, dtype: str) -> ast.expr:
    # A Python float would become float32.
    return _parsed(f"tl.full((), {text}, tl.{dtype})")


def _cast(value: ast.expr, to: str, *, bitcast: bool = False) -> ast.expr:
    call = ast.Call(ast.Attribute(value, "to", ast.Load()), [_parsed(to)], [])
    if bitcast:
        call.keywords = [ast.keyword("bitcast", ast.Constant(True))]
    return call


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(_parsed(name), list(arguments), [])


def _parsed(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body
