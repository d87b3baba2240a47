"""A recording replayed over lists of tensors, reusing the memory of what is needed no more."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from steprule import ops
from steprule.engines.foreach.fused_operations import Instruction
from steprule.engines.stages import Share, Totals
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.language.recording import (
    CONDITIONS,
    MATRIX_OPERATIONS,
    NUMBER_OPERATIONS,
    REDUCTIONS,
    TRUTHS,
    Value,
)
from steprule.matrix_ops.eigen import eigenbasis_list, inverse_root_list
from steprule.matrix_ops.orthogonalization import orthogonalized_list
from steprule.matrix_ops.sides import gram_list, sandwiched_list

TensorList = list[Tensor]
# What each tensor adds; of a matrix operation the tensors themselves, and what it is told.
Own = tuple[TensorList, tuple[Any, ...]]
# Asked for what several parameters, or processes, add up to (of each reduction, by its key, what
# each tensor adds): gives it for each tensor.
AskFor = Callable[[Mapping[int, Own]], Generator[Sequence[Share], Totals, Mapping[int, TensorList]]]


def _truth(x: Any) -> Tensor:
    return x if isinstance(x, Tensor) else torch.tensor(bool(x))


_PER_TENSOR: dict[str, Callable[..., Any]] = {
    **NUMBER_OPERATIONS,
    "and": lambda a, b: torch.logical_and(_truth(a), _truth(b)),
    "or": lambda a, b: torch.logical_or(_truth(a), _truth(b)),
    "not": torch.logical_not,
    **{
        name: getattr(VOCABULARY, name)
        for name in ("sign", "maximum", "minimum", "where", *sorted(REDUCTIONS))
    },
}
_MATRIX_FUNCTIONS: dict[str, Callable[..., TensorList]] = {
    "orthogonalized": orthogonalized_list,
    "sandwiched": sandwiched_list,
    "gram": gram_list,
    "eigenbasis": eigenbasis_list,
    "inverse_root": inverse_root_list,
}
# Those that may return what they were given: neither is then overwritten.
_KEEPING = {"eigenbasis", "inverse_root"}
# Operations that exist on lists, whatever mix of lists and numbers they are given.
_UNARY = {"sqrt", "exp", "expm1", "log", "log1p", "tanh", "floor", "sign", "neg", "abs"}
_BINARY = {"add", "sub", "mul", "div", "pow", "maximum", "minimum"}
_COMMUTING = {"add", "mul", "maximum", "minimum"}


class Replay:
    """One run of the instructions of a recording.

    Args:
        instructions: in order; reductions over several parameters that are asked for together
            follow each other.
        kept: what must not be overwritten after its last use: the outputs.
        values: of all that was computed before; results are put there.
        owned: lists whose tensors may be overwritten after their last use.
        homes: in which stored array's memory a value lies.
        compute: the dtype of arrays.
    """

    def __init__(
        self,
        instructions: Sequence[Instruction],
        kept: set[Value],
        values: dict[Value, Any],
        owned: set[Value],
        homes: dict[Value, str],
        compute: torch.dtype,
    ) -> None:
        self._instructions, self._kept = instructions, kept
        self._values, self._owned, self._homes, self._compute = values, owned, homes, compute
        self._last_use = {x: i for i, one in enumerate(instructions) for x in one.operands}
        self._truths: set[Value] = set()

    def run(
        self, shared: Mapping[Value, int], ask_for: AskFor
    ) -> Generator[Sequence[Share], Totals, None]:
        """Run all; ``shared`` are the reductions over several parameters, and their keys."""
        waiting: dict[Value, tuple[int, Own]] = {}
        for i, instruction in enumerate(self._instructions):
            if waiting and not (
                instruction.result in shared and waiting.keys().isdisjoint(instruction.operands)
            ):
                yield from self._ask_for_all(waiting, ask_for)
            operands = self._in_best_order(instruction, i)
            arguments = self._arguments(instruction.name, operands)
            is_of_matrices = instruction.name in MATRIX_OPERATIONS
            in_place = not is_of_matrices and self._is_last(operands[0], i)
            key = shared.get(instruction.result)
            result = self._result(
                instruction, arguments, in_place=in_place, is_shared=key is not None
            )
            if in_place and operands[0] in self._homes:
                self._homes[instruction.result] = self._homes[operands[0]]
            for x in set(operands):
                if isinstance(x, Value) and self._is_last(x, i):
                    del self._values[x]
                    self._owned.discard(x)
            if key is not None:
                told = ()
                if is_of_matrices:
                    told = (*arguments[1:], *instruction.settings)
                waiting[instruction.result] = key, (result, told)
            self._values[instruction.result] = result
            if instruction.name in TRUTHS:  # a number cannot be put in a truth value's place
                self._truths.add(instruction.result)
            elif instruction.name in _KEEPING:
                self._owned.difference_update(operands)
            elif instruction.result.is_array:
                self._owned.add(instruction.result)
        if waiting:
            yield from self._ask_for_all(waiting, ask_for)

    def _ask_for_all(
        self, waiting: dict[Value, tuple[int, Own]], ask_for: AskFor
    ) -> Generator[Sequence[Share], Totals, None]:
        """Put the totals of some reductions in the place of what each tensor adds to them."""
        totals = yield from ask_for(dict(waiting.values()))
        for value, (key, _) in waiting.items():
            self._values[value] = totals[key]
        waiting.clear()

    def _is_last(self, x: Any, i: int) -> bool:
        return x in self._owned and x not in self._kept and self._last_use[x] == i

    def _in_best_order(self, instruction: Instruction, i: int) -> Sequence[Any]:
        """Return the operands, the one that may be overwritten first where their order is free."""
        operands = instruction.operands
        if instruction.name in _COMMUTING and not self._is_last(operands[0], i):
            is_second_better = self._is_last(operands[1], i) or not _is_array(operands[0])
            return operands[::-1] if is_second_better else operands
        return operands

    def _arguments(self, name: str, operands: Sequence[Any]) -> list[Any]:
        conditions = CONDITIONS.get(name, 0)
        has_arrays = any(map(_is_array, operands))
        return [
            *map(self._value_of, operands[:conditions]),
            *(self._number_of(x, with_arrays=has_arrays) for x in operands[conditions:]),
        ]

    def _value_of(self, x: Any) -> Any:
        return self._values[x] if isinstance(x, Value) else x

    def _number_of(self, x: Any, *, with_arrays: bool) -> Any:
        # What follows from a reduction is one number a tensor, in float64 as all scalars.
        is_wide = with_arrays and isinstance(x, Value) and not x.is_array
        found = self._value_of(x)
        as_numbers = isinstance(found, list) and (x in self._truths or is_wide)
        dtype = self._compute if with_arrays else torch.float64
        return [t.to(dtype) for t in found] if as_numbers else found

    def _result(
        self, instruction: Instruction, arguments: list[Any], *, in_place: bool, is_shared: bool
    ) -> Any:
        name = instruction.name
        if is_shared and name == "mean_of":  # the mean is of all elements together
            name = "sum_of"
        if name in MATRIX_OPERATIONS and is_shared:  # of matrices that others have parts of
            return arguments[0]
        if name in MATRIX_OPERATIONS:
            return _MATRIX_FUNCTIONS[name](*arguments, *instruction.settings)
        if instruction.factor is None:
            return _run(name, arguments, in_place=in_place, axis=instruction.axis)
        factor = instruction.sign * self._value_of(instruction.factor)
        return _run_combined(name, arguments, factor, in_place=in_place)


def _run_combined(name: str, arguments: list[Any], factor: float, *, in_place: bool) -> TensorList:
    if name == "scaled":
        function = torch._foreach_add_ if in_place else torch._foreach_add
        result: Any = function(*arguments, alpha=factor)
    else:
        function = getattr(torch, f"_foreach_{name}" + ("_" if in_place else ""))
        result = function(*arguments, value=factor)
    return cast(TensorList, arguments[0] if in_place else list(result))


def _is_array(x: Any) -> bool:
    return isinstance(x, Value) and x.is_array


def _run(name: str, arguments: list[Any], *, in_place: bool, axis: ops.Axis) -> TensorList:
    is_list = [isinstance(x, list) for x in arguments]
    if name in _UNARY or (name in _BINARY and is_list[0]):
        function = getattr(torch, _foreach_name(name, is_list) + ("_" if in_place else ""))
        result = function(*arguments)
        return cast(TensorList, arguments[0] if in_place else list(result))
    count = len(next(x for x, it_is in zip(arguments, is_list, strict=True) if it_is))
    columns = [x if it_is else [x] * count for x, it_is in zip(arguments, is_list, strict=True)]
    function = _PER_TENSOR[name]
    if axis is not None:
        function = functools.partial(function, axis=axis)
    found = []
    for row in zip(*columns, strict=True):
        result = function(*row)
        if not isinstance(result, Tensor):  # a choice between numbers
            result = torch.tensor(result, dtype=torch.float64)
        # A choice may be one of its operands, which others may still need.
        found.append(result.clone() if any(result is x for x in row) else result)
    return found


def _foreach_name(name: str, is_list: list[bool]) -> str:
    if name in ("maximum", "minimum") and not all(is_list):
        name = {"maximum": "clamp_min", "minimum": "clamp_max"}[name]
    return f"_foreach_{name}"
