"""The kernels' language, lowered to LLVM's text; the package's docstring says what it has."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from llvmlite import ir

from steprule.engines.compiler.independent_loops import (
    mark_accesses,
    mark_loop,
    with_independent_loops,
)
from steprule.engines.compiler.target import symbol_of
from steprule.engines.compiler.vocabulary import (
    CONSTANTS,
    F32,
    F64,
    I1,
    I32,
    I64,
    WITHOUT_MEMORY,
    intrinsic_call,
    vocabulary,
)

_COMPARISONS: Mapping[type[ast.cmpop], str] = {
    ast.Eq: "==",
    ast.NotEq: "!=",
    ast.Lt: "<",
    ast.LtE: "<=",
    ast.Gt: ">",
    ast.GtE: ">=",
}
_INTEGER: Mapping[type[ast.operator], str] = {
    ast.Add: "add",
    ast.Sub: "sub",
    ast.Mult: "mul",
    ast.BitAnd: "and_",
    ast.BitOr: "or_",
    ast.BitXor: "xor",
    ast.LShift: "shl",
    ast.RShift: "ashr",
}
_FLOATING: Mapping[type[ast.operator], str] = {
    ast.Add: "fadd",
    ast.Sub: "fsub",
    ast.Mult: "fmul",
    ast.Div: "fdiv",
}
_TRUTHS: Mapping[type[ast.operator], str] = {ast.BitAnd: "and_", ast.BitOr: "or_"}
# nan and infinity keep their meaning: neither `nnan` nor `ninf`.
_REORDERS = ("reassoc", "contract", "nsz", "arcp")
_VOID = ir.VoidType()


class LanguageError(ValueError):
    """A kernel's source is not in the kernels' language."""

    def __init__(self, node: ast.AST, problem: str) -> None:
        text = ast.unparse(node).split("\n")[0]
        super().__init__(f"line {getattr(node, 'lineno', '?')}, `{text}`: {problem}")


def lowered(source: str, names: Sequence[str], *, reorders_sums: bool) -> str:
    """LLVM's text for a source; the functions ``names`` can be seen from outside."""
    module = ir.Module("steprule")
    functions: dict[str, ir.Function] = {}
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef):
            raise LanguageError(node, "only functions stand here")
        if node.name in functions:
            raise LanguageError(node, "stands here twice")
        if node.decorator_list or ast.unparse(node.args) != ", ".join(
            argument.arg for argument in node.args.args
        ):
            raise LanguageError(node, "has more than plain arguments")
        returned = _returned_kind(node)
        if node.name in names and returned != I64:
            raise LanguageError(node, "must return an integer, to be called from outside")
        kind = ir.FunctionType(returned, [I64] * len(node.args.args))
        function = ir.Function(module, kind, symbol_of(node.name))
        if node.name not in names:
            function.linkage = "internal"
        functions[node.name] = function
        _Body(node, function, functions, _REORDERS if reorders_sums else ()).lower()
    return with_independent_loops(str(module))


def _returned_kind(function: ast.FunctionDef) -> Any:
    """Return the kind that a function returns, by the look of its first ``return``."""
    returned = next((n.value for n in ast.walk(function) if isinstance(n, ast.Return)), None)
    if returned is None:
        return _VOID
    is_truth = isinstance(returned, (ast.Compare, ast.BoolOp)) or (
        isinstance(returned, ast.Constant) and isinstance(returned.value, bool)
    )
    return I1 if is_truth else I64


def _is_float(kind: Any) -> bool:
    return kind in (F32, F64)


class _Body:
    """The body of one function."""

    def __init__(
        self,
        node: ast.FunctionDef,
        function: ir.Function,
        functions: Mapping[str, ir.Function],
        flags: tuple[str, ...],
    ) -> None:
        self._node = node
        self._function = function
        self._functions = functions
        self._flags = flags
        self._entry = function.append_basic_block("entry")
        self._builder = ir.IRBuilder(function.append_basic_block("body"))
        self._cells: dict[str, Any] = {}
        self._loops: list[tuple[ir.Block, ir.Block]] = []  # where continue and break go

    def lower(self) -> None:
        start = self._builder.block
        for argument, value in zip(self._node.args.args, self._function.args, strict=True):
            self._assign(argument, argument.arg, value)
        self._statements(self._node.body)
        if not self._builder.block.is_terminated:
            if self._function.return_value.type != _VOID:
                raise LanguageError(self._node, "may end without a return")
            self._builder.ret_void()
        ir.IRBuilder(self._entry).branch(start)

    # Statements

    def _statements(self, nodes: Sequence[ast.stmt]) -> None:
        for node in nodes:
            if self._builder.block.is_terminated:
                raise LanguageError(node, "is never reached")
            ways: Mapping[type[ast.stmt], Callable[[Any], Any]] = {
                ast.Assign: self._assignment,
                ast.AugAssign: self._augmented,
                ast.Expr: self._call_alone,
                ast.If: self._if,
                ast.For: self._for,
                ast.While: self._while,
                ast.Return: self._return,
                ast.Continue: lambda n: self._builder.branch(self._loop_of(n)[0]),
                ast.Break: lambda n: self._builder.branch(self._loop_of(n)[1]),
            }
            if type(node) not in ways:
                raise LanguageError(node, "is not in the language")
            ways[type(node)](node)

    def _assignment(self, node: ast.Assign) -> None:
        value = self._value(node.value)
        for target in node.targets:
            self._assign(node, _name_of(target), value)

    def _augmented(self, node: ast.AugAssign) -> None:
        name = _name_of(node.target)
        value = self._operation(node, node.op, self._read(node, name), self._value(node.value))
        self._assign(node, name, value)

    def _assign(self, node: ast.AST, name: str, value: Any) -> None:
        if name in CONSTANTS:
            raise LanguageError(node, f"{name} is a constant")
        if name not in self._cells:
            with self._builder.goto_block(self._entry):
                self._cells[name] = self._builder.alloca(value.type, name=name), value.type
        cell, kind = self._cells[name]
        if kind != value.type:
            raise LanguageError(node, f"{name} is {kind}, and cannot become {value.type}")
        self._builder.store(value, cell)

    def _read(self, node: ast.AST, name: str) -> Any:
        if name in CONSTANTS:
            return ir.Constant(F64, CONSTANTS[name])
        if name not in self._cells:
            raise LanguageError(node, f"{name} has no value here")
        cell, kind = self._cells[name]
        return self._builder.load(cell, typ=kind)

    def _call_alone(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Call):
            raise LanguageError(node, "does nothing")
        self._call(node.value)

    def _if(self, node: ast.If) -> None:
        then, otherwise = self._block("then"), self._block("else")
        after = self._block("after") if node.orelse else otherwise
        self._builder.cbranch(self._truth(node.test), then, otherwise)
        self._fill(then, node.body, after)
        if node.orelse:
            self._fill(otherwise, node.orelse, after)
        self._builder.position_at_end(after)
        if node.orelse and not _is_entered(self._function, after):
            self._builder.unreachable()

    def _fill(self, block: ir.Block, nodes: Sequence[ast.stmt], after: ir.Block) -> None:
        self._builder.position_at_end(block)
        self._statements(nodes)
        if not self._builder.block.is_terminated:
            self._builder.branch(after)

    def _for(self, node: ast.For) -> None:
        first, end, step = self._range(node.iter)
        is_independent = _callee(node.iter) == "independent"
        with self._builder.goto_block(self._entry):
            counter = self._builder.alloca(I64)
        self._builder.store(first, counter)
        test, body, advance, after = map(self._block, ("test", "loop", "advance", "after"))
        self._builder.branch(test)
        self._builder.position_at_end(test)
        here = self._builder.load(counter, typ=I64)
        more = self._builder.icmp_signed("<" if step.constant > 0 else ">", here, end)
        self._builder.cbranch(more, body, after)
        self._builder.position_at_end(body)
        self._assign(node, _name_of(node.target), here)
        known = len(self._function.blocks)
        self._inside(node, advance, after)
        if is_independent:
            mark_accesses([body, *self._function.blocks[known:]])
        self._builder.position_at_end(advance)
        here = self._builder.load(counter, typ=I64)
        self._builder.store(self._builder.add(here, step, flags=("nsw",)), counter)
        back = self._builder.branch(test)
        if is_independent:
            mark_loop(back)
        self._builder.position_at_end(after)

    def _range(self, node: ast.expr) -> tuple[Any, Any, Any]:
        if (
            not isinstance(node, ast.Call)
            or _callee(node) not in ("range", "independent")
            or not 1 <= len(node.args) <= 3
        ):
            raise LanguageError(node, "is not a range")
        bounds = [self._integer(x) for x in node.args]
        first, end = ([I64(0), *bounds] if len(bounds) == 1 else bounds)[:2]
        step = bounds[2] if len(bounds) == 3 else I64(1)
        if not isinstance(step, ir.Constant) or step.constant == 0:
            raise LanguageError(node, "the step must be a constant other than 0")
        return first, end, step

    def _while(self, node: ast.While) -> None:
        test, body, after = map(self._block, ("test", "loop", "after"))
        self._builder.branch(test)
        self._builder.position_at_end(test)
        self._builder.cbranch(self._truth(node.test), body, after)
        self._builder.position_at_end(body)
        self._inside(node, test, after)
        self._builder.position_at_end(after)

    def _inside(self, node: ast.For | ast.While, again: ir.Block, after: ir.Block) -> None:
        if node.orelse:
            raise LanguageError(node, "has an else")
        self._loops.append((again, after))
        self._statements(node.body)
        self._loops.pop()
        if not self._builder.block.is_terminated:
            self._builder.branch(again)

    def _loop_of(self, node: ast.stmt) -> tuple[ir.Block, ir.Block]:
        if not self._loops:
            raise LanguageError(node, "stands in no loop")
        return self._loops[-1]

    def _return(self, node: ast.Return) -> None:
        kind = self._function.return_value.type
        if node.value is None:
            if kind != _VOID:
                raise LanguageError(node, f"returns nothing, elsewhere {kind}")
            self._builder.ret_void()
            return
        value = self._value(node.value)
        if value.type != kind:
            raise LanguageError(node, f"returns {value.type}, elsewhere {kind}")
        self._builder.ret(value)

    def _block(self, name: str) -> ir.Block:
        return self._function.append_basic_block(name)

    # Expressions

    def _value(self, node: ast.expr) -> Any:
        ways: Mapping[type[ast.expr], Callable[[Any], Any]] = {
            ast.Constant: _constant,
            ast.Name: lambda n: self._read(n, n.id),
            ast.BinOp: self._binary,
            ast.UnaryOp: self._unary,
            ast.Compare: self._comparison,
            ast.BoolOp: self._early,
            ast.IfExp: self._choice,
            ast.Call: self._call,
        }
        if type(node) not in ways:
            raise LanguageError(node, "is not in the language")
        value = ways[type(node)](node)
        if value is None:
            raise LanguageError(node, "has no value")
        return value

    def _truth(self, node: ast.expr) -> Any:
        return self._is_true(self._value(node))

    def _is_true(self, value: Any) -> Any:
        """Return a truth value, or whether a number is not zero."""
        if value.type == I1:
            return value
        zero = ir.Constant(value.type, 0)
        if value.type in (I32, I64):
            return self._builder.icmp_signed("!=", value, zero)
        return self._builder.fcmp_unordered("!=", value, zero)

    def _integer(self, node: ast.expr) -> Any:
        return self._of_kind(node, I64)

    def _of_kind(self, node: ast.expr, kind: Any) -> Any:
        value = self._value(node)
        if value.type != kind:
            raise LanguageError(node, f"is {value.type}, not {kind}")
        return value

    def _binary(self, node: ast.BinOp) -> Any:
        return self._operation(node, node.op, self._value(node.left), self._value(node.right))

    def _operation(self, node: ast.AST, operator: ast.operator, left: Any, right: Any) -> Any:
        kind = left.type
        if kind != right.type:
            raise LanguageError(node, f"mixes {kind} and {right.type}")
        if _is_float(kind):
            if isinstance(operator, ast.Pow):
                return intrinsic_call("pow")(self._builder, left, right)
            table, options = _FLOATING, {"flags": self._flags}
        else:
            table, options = (_TRUTHS if kind == I1 else _INTEGER), {}
        name = table.get(type(operator))
        if name is None:
            raise LanguageError(node, f"there is no such operation on {kind}")
        return getattr(self._builder, name)(left, right, **options)

    def _unary(self, node: ast.UnaryOp) -> Any:
        value = self._value(node.operand)
        if isinstance(node.op, ast.Not):
            return self._builder.not_(self._is_true(value))
        if isinstance(node.op, ast.USub) and _is_float(value.type):
            return self._builder.fneg(value, flags=self._flags)
        if isinstance(node.op, ast.USub) and value.type == I64:
            if isinstance(value, ir.Constant):
                return I64(-value.constant)
            return self._builder.neg(value)
        raise LanguageError(node, f"there is no such operation on {value.type}")

    def _comparison(self, node: ast.Compare) -> Any:
        name = _COMPARISONS.get(type(node.ops[0]))
        if name is None or len(node.ops) > 1:
            raise LanguageError(node, "is not in the language")
        left, right = self._value(node.left), self._value(node.comparators[0])
        if left.type != right.type or left.type == I1:
            raise LanguageError(node, f"compares {left.type} with {right.type}")
        if left.type in (I32, I64):
            return self._builder.icmp_signed(name, left, right)
        # A nan is unequal to everything, and neither less nor greater than anything.
        compare = self._builder.fcmp_unordered if name == "!=" else self._builder.fcmp_ordered
        return compare(name, left, right, flags=self._flags)

    def _early(self, node: ast.BoolOp) -> Any:
        """Lower ``and`` and ``or``: what comes after is only looked at where it matters."""
        stops_at = I1(isinstance(node.op, ast.Or))
        after = self._block("known")
        known = []
        for operand in node.values[:-1]:
            value = self._truth(operand)
            known.append((stops_at, self._builder.block))
            more = self._block("more")
            targets = (after, more) if stops_at.constant else (more, after)
            self._builder.cbranch(value, *targets)
            self._builder.position_at_end(more)
        last = self._truth(node.values[-1])
        known.append((last, self._builder.block))
        self._builder.branch(after)
        self._builder.position_at_end(after)
        result = self._builder.phi(I1)
        for value, block in known:
            result.add_incoming(value, block)
        return result

    def _choice(self, node: ast.IfExp) -> Any:
        for side in (node.body, node.orelse):
            calls = (n for n in ast.walk(side) if isinstance(n, ast.Call))
            if any(getattr(n.func, "id", None) not in WITHOUT_MEMORY for n in calls):
                raise LanguageError(side, "is computed whatever the condition, and may not call")
        condition = self._truth(node.test)
        one, other = self._value(node.body), self._value(node.orelse)
        if one.type != other.type:
            raise LanguageError(node, f"is {one.type} or {other.type}")
        return self._builder.select(condition, one, other)

    def _call(self, node: ast.Call) -> Any:
        name = _name_of(node.func)
        if node.keywords:
            raise LanguageError(node, "names its arguments")
        values = [self._value(x) for x in node.args]
        kinds = [value.type for value in values]
        if name in self._functions:
            function = self._functions[name]
            if kinds != list(function.function_type.args):
                raise LanguageError(node, f"is given {', '.join(map(str, kinds))}")
            result = self._builder.call(function, values)
            return None if result.type == _VOID else result
        word = vocabulary().get(name)
        if word is None:
            raise LanguageError(node, f"there is no {name}")
        if not word.takes(kinds):
            raise LanguageError(node, f"is given {', '.join(map(str, kinds))}")
        return word.emit(self._builder, *values)


def _constant(node: ast.Constant) -> Any:
    value: Any = node.value
    kinds = {bool: I1, int: I64, float: F64}
    if type(value) not in kinds:
        raise LanguageError(node, "is not a number")
    if type(value) is int and value >= 1 << 63:
        raise LanguageError(node, "is beyond 64 bits")
    return ir.Constant(kinds[type(value)], value)


def _name_of(node: ast.expr) -> str:
    if not isinstance(node, ast.Name):
        raise LanguageError(node, "is not a name")
    return node.id


def _callee(node: ast.expr) -> str | None:
    """Return the name of what is called, if a name is."""
    return getattr(node.func, "id", None) if isinstance(node, ast.Call) else None


def _is_entered(function: ir.Function, block: ir.Block) -> bool:
    ends = (b.terminator for b in function.blocks if b.is_terminated)
    return any(block in end.operands for end in ends)
