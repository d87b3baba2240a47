"""A rule, run once on symbols: what engines replay or print.

Operations on scalars alone (bias corrections, step sizes) are kept apart from those that
touch an array, so that an engine evaluates the former once a step in float64 and only the
latter for each element. A *reduction* (a sum, a norm) makes a scalar of an array; it, and what
follows from it, each parameter has of its own. Equal expressions are recorded once; unused ones
not at all.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias, get_args

from steprule import ops
from steprule.cached import cached_property
from steprule.language.rule import listed

Side: TypeAlias = Literal["left", "right"]


@dataclass(frozen=True)
class Value:
    """One quantity in a recording: an input, or the result of an operation.

    ``each`` says of what is neither a number nor an array that there is one for each ``"row"`` of
    a matrix, or ``"column"``; ``side`` that an array is not of the parameter's shape, but a square
    matrix of its rows (``"left"``) or columns (``"right"``).
    """

    index: int
    is_array: bool
    each: Literal["row", "column"] | None = None
    side: Side | None = None

    @property
    def is_scalar(self) -> bool:
        """Whether it is one number for the parameter."""
        return not self.is_array and self.each is None


@dataclass(frozen=True)
class Operation:
    """``result = name(*operands)``; an operand is a value or a constant.

    ``over`` and ``axis`` say of a reduction over whose elements it is taken; ``settings`` are what
    a matrix operation was told beside its operands.
    """

    result: Value
    name: str
    operands: tuple[Value | float, ...]
    over: ops.Over | Literal["shards"] = "param"
    settings: tuple[Any, ...] = ()
    axis: ops.Axis = None

    @property
    def is_shared(self) -> bool:
        """Whether it is a reduction to which several parameters, or processes, add."""
        return self.over != "param"


@dataclass(frozen=True)
class Recording:
    """A rule's operations, in the order they run.

    Attributes:
        array_inputs: param, grad and the slots that are arrays, by name.
        scalar_inputs: numbers and scalar slots, by name.
        scalar_operations: on scalars that follow from no array.
        tensor_operations: on arrays, reductions, and on scalars that follow from these.
        outputs: the new param and slots, in the rule's order; None where the rule has no such
            slot under the flags it was recorded with.
    """

    array_inputs: Mapping[str, Value]
    scalar_inputs: Mapping[str, Value]
    scalar_operations: tuple[Operation, ...]
    tensor_operations: tuple[Operation, ...]
    outputs: Mapping[str, Value | float | None]
    calls_of_shared: tuple[Value, ...] = ()
    each_inputs: Mapping[str, Value] = field(default_factory=dict)

    @cached_property
    def has_axes(self) -> bool:
        """Whether it tells rows from columns."""
        return any(x.result.each or x.axis for x in self.tensor_operations) or bool(
            self.each_inputs
        )

    @cached_property
    def shared_reductions(self) -> tuple[Operation, ...]:
        """Those over several parameters or processes, in the order in which the rule has them."""
        return tuple(x for x in self.tensor_operations if x.is_shared)

    @cached_property
    def shared_keys(self) -> dict[Value, int]:
        """A number for each of :attr:`shared_reductions`, by its result.

        Those over several parameters come first, so that they have the same ones where flags make
        other sums over the elements of one.
        """
        several = [x for x in self.shared_reductions if x.over != OVER_SHARDS]
        of_one = [x for x in self.shared_reductions if x.over == OVER_SHARDS]
        return {x.result: key for key, x in enumerate((*several, *of_one))}

    @cached_property
    def array_operations(self) -> tuple[Operation, ...]:
        """Those whose result is an array."""
        return tuple(x for x in self.tensor_operations if x.result.is_array)

    @cached_property
    def matrix_operations(self) -> tuple[Operation, ...]:
        """Those on whole matrices."""
        return tuple(x for x in self.array_operations if x.name in MATRIX_OPERATIONS)

    @property
    def has_reductions(self) -> bool:
        """Whether it has sums over a parameter's elements."""
        return len(self.array_operations) < len(self.tensor_operations)

    def scalars(self, inputs: Mapping[str, Any]) -> dict[Value, Any]:
        """Return the value of every scalar quantity, for these scalar inputs."""
        known: dict[Value, Any] = {v: inputs[name] for name, v in self.scalar_inputs.items()}
        for operation in self.scalar_operations:
            arguments = [known[x] if isinstance(x, Value) else x for x in operation.operands]
            known[operation.result] = NUMBER_OPERATIONS[operation.name](*arguments)
        return known

    def scalars_for_arrays(self) -> list[Value]:
        """Return the scalars that operations on tensors read, in the order of first use."""
        used: dict[Value, None] = {}
        for operation in self.tensor_operations:
            for x in operation.operands:
                if isinstance(x, Value) and x.is_scalar:
                    used[x] = None
        for output in self.outputs.values():
            if isinstance(output, Value) and output.is_scalar:
                used[output] = None
        return list(used)


NUMBER_OPERATIONS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "pow": operator.pow,
    "neg": operator.neg,
    "abs": abs,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": lambda a, b: bool(a) and bool(b),
    "or": lambda a, b: bool(a) or bool(b),
    "not": lambda a: not a,
    "sqrt": ops.NUMBERS.sqrt,
    "exp": ops.NUMBERS.exp,
    "expm1": ops.NUMBERS.expm1,
    "log": ops.NUMBERS.log,
    "log1p": ops.NUMBERS.log1p,
    "tanh": ops.NUMBERS.tanh,
    "floor": ops.NUMBERS.floor,
    "sign": ops.NUMBERS.sign,
    "maximum": ops.NUMBERS.maximum,
    "minimum": ops.NUMBERS.minimum,
    "where": ops.NUMBERS.where,
}
# Those that give truth values.
TRUTHS = {"lt", "le", "gt", "ge", "eq", "ne", "and", "or", "not"}
# How many of an operation's first operands are conditions; the others are numbers, as which a truth
# value is 1 or 0.
CONDITIONS = {"and": 2, "or": 2, "not": 1, "where": 1}


# Operations on whole matrices, whose every element depends on all others.
MATRIX_OPERATIONS = {"orthogonalized", "sandwiched", "gram", "eigenbasis", "inverse_root"}
# Those among them that a part of a matrix, sent to a process that puts it together, is enough for.
SPREADABLE = {"orthogonalized"}
# Operations that make a scalar of arrays, in float64.
REDUCTIONS = {"sum_of", "mean_of", "max_of", "dot_of"}
# Over what a sum is taken, or a matrix operation, that is of one parameter in several processes.
OVER_SHARDS: Literal["shards"] = "shards"


class Symbol:
    """Stands for a number or an array while a rule is being recorded."""

    __slots__ = ("tape", "value")
    __hash__ = None  # type: ignore[assignment]  # comparisons are recorded, so no hashing

    def __init__(self, tape: Tape, value: Value) -> None:
        self.tape = tape
        self.value = value

    def __bool__(self) -> bool:
        raise TypeError(
            "a rule may not branch on a value (`if`, `and`, `or`, `max`, `min` of it): "
            "use where(condition, a, b), maximum(a, b) or minimum(a, b), which every engine has; "
            "an option that is fixed before the rule runs is a keyword-only flag"
        )

    def __float__(self) -> float:
        raise TypeError("a rule may not turn a value into a Python number")

    __int__ = __index__ = __len__ = __float__

    def __array_ufunc__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("a rule may use the operations of steprule.ops, not numpy's")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(_not_torchs(name, "a tensor's ."))

    @classmethod
    def __torch_function__(cls, function: Any, *_: Any, **__: Any) -> Any:
        raise TypeError(_not_torchs(getattr(function, "__name__", str(function))))

    def __add__(self, other: Any) -> Symbol:
        return self.tape.record("add", self, other)

    def __radd__(self, other: Any) -> Symbol:
        return self.tape.record("add", other, self)

    def __sub__(self, other: Any) -> Symbol:
        return self.tape.record("sub", self, other)

    def __rsub__(self, other: Any) -> Symbol:
        return self.tape.record("sub", other, self)

    def __mul__(self, other: Any) -> Symbol:
        return self.tape.record("mul", self, other)

    def __rmul__(self, other: Any) -> Symbol:
        return self.tape.record("mul", other, self)

    def __truediv__(self, other: Any) -> Symbol:
        return self.tape.record("div", self, other)

    def __rtruediv__(self, other: Any) -> Symbol:
        return self.tape.record("div", other, self)

    def __pow__(self, other: Any) -> Symbol:
        return self.tape.record("pow", self, other)

    def __rpow__(self, other: Any) -> Symbol:
        return self.tape.record("pow", other, self)

    def __neg__(self) -> Symbol:
        return self.tape.record("neg", self)

    def __abs__(self) -> Symbol:
        return self.tape.record("abs", self)

    def __lt__(self, other: Any) -> Symbol:
        return self.tape.record("lt", self, other)

    def __le__(self, other: Any) -> Symbol:
        return self.tape.record("le", self, other)

    def __gt__(self, other: Any) -> Symbol:
        return self.tape.record("gt", self, other)

    def __ge__(self, other: Any) -> Symbol:
        return self.tape.record("ge", self, other)

    def __eq__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self.tape.record("eq", self, other)

    def __ne__(self, other: Any) -> Symbol:  # type: ignore[override]
        return self.tape.record("ne", self, other)

    def __and__(self, other: Any) -> Symbol:
        return self.tape.record("and", self, other)

    def __or__(self, other: Any) -> Symbol:
        return self.tape.record("or", self, other)

    def __invert__(self) -> Symbol:
        return self.tape.record("not", self)


# torch's functions by what a rule says instead; others go by the same name, or have none.
_INSTEAD = {
    "add": "+",
    "sub": "-",
    "subtract": "-",
    "mul": "*",
    "multiply": "*",
    "div": "/",
    "divide": "/",
    "true_divide": "/",
    "pow": "**",
    "neg": "-",
    "negative": "-",
    "abs": "abs()",
    "absolute": "abs()",
    "clamp": "steprule.ops.clip",
    "clamp_min": "steprule.ops.maximum",
    "clamp_max": "steprule.ops.minimum",
    "reciprocal": "1 / x",
    "addcmul": "a + value * b * c",
    "addcdiv": "a + value * b / c",
    "zeros_like": "0 * x",
    "ones_like": "0 * x + 1",
    "logical_and": "&",
    "logical_or": "|",
    "logical_not": "~",
    "sum": "steprule.ops.sum_of",
    "mean": "steprule.ops.mean_of",
    "norm": "steprule.ops.norm_of",
    "linalg_norm": "steprule.ops.norm_of",
    "linalg_vector_norm": "steprule.ops.norm_of",
    "dot": "steprule.ops.dot_of",
    "max": "steprule.ops.max_of",
    "amax": "steprule.ops.max_of",
    "isfinite": "steprule.ops.all_finite",
}


def _not_torchs(name: str, before: str = "torch.") -> str:
    """Return the message that refuses one of torch's functions, or methods, in a rule."""
    ours = f"steprule.ops.{name}" if name in ops.__all__ else _INSTEAD.get(name)
    hint = f"write {ours}" if ours else f"there are {', '.join(ops.__all__)}"
    return f"a rule may use the operations of steprule.ops, not {before}{name}: {hint}"


class SymbolVocabulary:
    """The operations of :mod:`steprule.ops`, recorded."""

    def sqrt(self, x: Any) -> Any:
        return _tape_of(x).record("sqrt", x)

    def exp(self, x: Any) -> Any:
        return _tape_of(x).record("exp", x)

    def expm1(self, x: Any) -> Any:
        return _tape_of(x).record("expm1", x)

    def log(self, x: Any) -> Any:
        return _tape_of(x).record("log", x)

    def log1p(self, x: Any) -> Any:
        return _tape_of(x).record("log1p", x)

    def tanh(self, x: Any) -> Any:
        return _tape_of(x).record("tanh", x)

    def floor(self, x: Any) -> Any:
        return _tape_of(x).record("floor", x)

    def sign(self, x: Any) -> Any:
        return _tape_of(x).record("sign", x)

    def maximum(self, a: Any, b: Any) -> Any:
        return _tape_of(a, b).record("maximum", a, b)

    def minimum(self, a: Any, b: Any) -> Any:
        return _tape_of(a, b).record("minimum", a, b)

    def where(self, condition: Any, a: Any, b: Any) -> Any:
        if isinstance(condition, bool):  # both branches are there already: nothing to choose later
            return a if condition else b
        return _tape_of(condition, a, b).record("where", condition, a, b)

    def lerp(self, a: Any, b: Any, weight: Any) -> Any:
        return a + weight * (b - a)

    def sum_of(self, x: Any, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        return _tape_of(x).record("sum_of", x, over=over, axis=axis)

    def mean_of(self, x: Any, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        return _tape_of(x).record("mean_of", x, over=over, axis=axis)

    def max_of(self, x: Any, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        return _tape_of(x).record("max_of", x, over=over, axis=axis)

    def norm_of(self, x: Any, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        return self.sqrt(self.dot_of(x, x, over, axis))

    def dot_of(self, x: Any, y: Any, over: ops.Over = "param", axis: ops.Axis = None) -> Any:
        return _tape_of(x, y).record("dot_of", x, y, over=over, axis=axis)


ops.register_vocabulary(Symbol, SymbolVocabulary())


def _tape_of(*operands: Any) -> Tape:
    return next(x.tape for x in operands if isinstance(x, Symbol))


class Tape:
    """Collects operations while a rule runs on symbols.

    Args:
        is_sharded: whether sums over a parameter's elements are shared by processes.
    """

    def __init__(self, *, is_sharded: bool = False) -> None:
        self._is_sharded = is_sharded
        self.count = 0
        self.operations: dict[tuple[str, tuple[Any, ...], tuple[Any, ...]], Operation] = {}
        self.of_arrays: set[Value] = set()  # arrays, and scalars that follow from them
        self.calls_of_shared: list[Value] = []

    def new_input(
        self,
        *,
        is_array: bool,
        each: Literal["row", "column"] | None = None,
        side: Side | None = None,
    ) -> Symbol:
        value = Value(self.count, is_array, each, side)
        self.count += 1
        if not value.is_scalar:
            self.of_arrays.add(value)
        return Symbol(self, value)

    def record(
        self,
        name: str,
        *operands: Any,
        over: ops.Over | Literal["shards"] = "param",
        settings: tuple[Any, ...] = (),
        axis: ops.Axis = None,
        side: Side | None = None,
    ) -> Symbol:
        values = tuple(_operand(name, x) for x in operands)
        is_of_whole = name in MATRIX_OPERATIONS or name in REDUCTIONS
        if self._is_sharded and is_of_whole and over == "param":
            over = OVER_SHARDS
        # Constants are keyed by their type too: 1 == True == 1.0 in a dict.
        known = tuple(x if isinstance(x, Value) else ("constant", repr(x)) for x in values)
        key = name, (over, axis, *settings), known
        if key not in self.operations:
            result = self._result_of(name, values, axis, side)
            if not self.of_arrays.isdisjoint(values):
                self.of_arrays.add(result)
            self.operations[key] = Operation(result, name, values, over, settings, axis)
        found = self.operations[key].result
        if over != "param":
            self.calls_of_shared.append(found)
        return Symbol(self, found)

    def _result_of(
        self, name: str, values: Sequence[Value | float], axis: ops.Axis, side: Side | None
    ) -> Value:
        """Return the quantity that an operation on these makes."""
        if name in MATRIX_OPERATIONS:
            return self.new_input(is_array=True, side=side).value
        kinds: set[str] = {
            x.side or x.each or "array" for x in values if isinstance(x, Value) and not x.is_scalar
        }
        if not kinds.isdisjoint(get_args(Side)):
            return self._result_of_squares(name, kinds, axis)
        if name in REDUCTIONS:
            kinds = self._reduced(kinds, axis, values)
        is_array = "array" in kinds or len(kinds) > 1  # rows and columns spread over it
        each: Any = None if is_array or not kinds else kinds.pop()
        return self.new_input(is_array=is_array, each=each).value

    def _result_of_squares(self, name: str, kinds: set[str], axis: ops.Axis) -> Value:
        if len(kinds) > 1 or axis is not None:
            what = "of one side only" if axis is None else "which have no rows or columns of it"
            raise TypeError(
                f"a rule's `{name}` got square matrices of a parameter's sides, {what}: use "
                "steprule.matrix_ops for what they do to the parameter"
            )
        if name in REDUCTIONS:
            return self.new_input(is_array=False).value
        side: Any = next(iter(kinds))
        return self.new_input(is_array=True, side=side).value

    @staticmethod
    def _reduced(kinds: set[str], axis: ops.Axis, operands: Sequence[Value | float]) -> set[str]:
        """Return of what kind a reduction of such operands is."""
        if not kinds:
            ops.NUMBERS.sum_of(operands[0])  # which refuses
        if axis is None:
            return set()
        kept, gone = ("row", "column") if axis == -1 else ("column", "row")
        if kinds == {kept}:
            raise TypeError(f"there is one number for each {kept} already: axis={axis} has no more")
        return set() if kinds == {gone} else {kept}


def _operand(operation: str, x: Any) -> Value | float:
    if isinstance(x, Symbol):
        return x.value
    if isinstance(x, (bool, int, float)):
        return float(x)
    raise TypeError(
        f"a rule's `{operation}` got {type(x).__name__} {x!r}: "
        "a rule computes with its arguments and plain numbers only"
    )


def record(
    function: Callable[..., Sequence[Any]],
    arrays: Mapping[str, bool],
    scalars: Sequence[str],
    flags: Mapping[str, Any],
    scalar_slots: Sequence[str] = (),
    each: Mapping[str, Literal["row", "column"]] | None = None,
    sides: Mapping[str, Side] | None = None,
    *,
    is_sharded: bool = False,
) -> Recording:
    """Run ``function`` once on symbols.

    Args:
        function: called with one positional argument for each of ``arrays`` and keywords for
            the rest; returns the new param, then the slots that follow ``param, grad``.
        arrays: the positional arguments in order; False for a slot that is absent (None is
            passed, and must be returned, in its place).
        scalars: names of the keyword arguments that are numbers known only at the step.
        flags: keyword arguments fixed now.
        scalar_slots: those of ``arrays`` that hold one number for the whole parameter.
        each: those that hold one for each row or column.
        sides: those that hold a square matrix of the parameter's rows or columns.
        is_sharded: whether sums over a parameter's elements are shared by the processes that have
            a part of it.
    """
    each, sides = each or {}, sides or {}
    tape = Tape(is_sharded=is_sharded)
    symbols = {
        name: tape.new_input(
            is_array=name not in scalar_slots and name not in each,
            each=each.get(name),
            side=sides.get(name),
        )
        if present
        else None
        for name, present in arrays.items()
    }
    scalar_symbols = {name: tape.new_input(is_array=False) for name in scalars}
    returned = listed(function(*symbols.values(), **scalar_symbols, **flags))
    names = [name for name in arrays if name != "grad"]
    check_count("the rule", names, returned)
    outputs: dict[str, Value | float | None] = {}
    for name, new in zip(names, returned, strict=True):
        if (new is None) != (symbols[name] is None):
            raise TypeError(
                f"the rule returned {'None' if new is None else 'a value'} for slot {name!r}, "
                f"which is {'present' if new is None else 'absent'} under these options"
            )
        output = None if new is None else _operand("return", new)
        if isinstance(output, Value) and not output.is_scalar and name in scalar_slots:
            raise TypeError(f"the rule returned an array for the scalar slot {name!r}")
        if name in each and getattr(output, "each", None) != each[name]:
            raise TypeError(f"the rule must return one number for each {each[name]} for {name!r}")
        if isinstance(output, Value) and output.is_array and output.side != sides.get(name):
            wanted = f"a {sides[name]} square matrix" if name in sides else "an array of its shape"
            raise TypeError(f"the rule must return {wanted} for {name!r}")
        outputs[name] = output
    operations = _needed(tape.operations.values(), outputs.values())
    inputs = {name: s.value for name, s in symbols.items() if s is not None}
    return Recording(
        array_inputs={n: v for n, v in inputs.items() if v.is_array},
        each_inputs={n: v for n, v in inputs.items() if v.each is not None},
        scalar_inputs={n: v for n, v in inputs.items() if v.is_scalar}
        | {name: s.value for name, s in scalar_symbols.items()},
        scalar_operations=tuple(x for x in operations if x.result not in tape.of_arrays),
        tensor_operations=tuple(x for x in operations if x.result in tape.of_arrays),
        outputs=outputs,
        calls_of_shared=tuple(tape.calls_of_shared),
    )


def check_count(rule: str, names: Sequence[str], returned: Sequence[Any]) -> None:
    """Refuse what a rule returned if it is not one value for each of ``names``.

    Raises:
        TypeError: saying what must be returned.
    """
    if len(returned) != len(names):
        raise TypeError(
            f"{rule} returned {len(returned)} values; it must return {len(names)}: "
            f"the new {', '.join(names)}, in that order"
        )


def _needed(operations: Any, outputs: Any) -> list[Operation]:
    """Return those of ``operations`` that ``outputs`` depend on, in order."""
    wanted = {x for x in outputs if isinstance(x, Value)}
    kept = []
    for operation in reversed(list(operations)):
        if operation.result in wanted:
            wanted.update(x for x in operation.operands if isinstance(x, Value))
            kept.append(operation)
    return kept[::-1]
