"""Parameters updated by one replay of the recording over lists, ``torch._foreach_*``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from steprule.engines.foreach.fused_operations import Instruction, instructions_of
from steprule.engines.tensor_vocabulary import VOCABULARY
from steprule.formats import format_of
from steprule.formats.floating import compute_dtype, real_view
from steprule.language.form import Form
from steprule.language.recording import (
    CONDITIONS,
    NUMBER_OPERATIONS,
    REDUCTIONS,
    TRUTHS,
    Recording,
    Value,
)

TensorList = list[Tensor]


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
# Operations that exist on lists, whatever mix of lists and numbers they are given.
_UNARY = {"sqrt", "exp", "expm1", "log", "log1p", "tanh", "floor", "sign", "neg", "abs"}
_BINARY = {"add", "sub", "mul", "div", "pow", "maximum", "minimum"}
_COMMUTING = {"add", "mul", "maximum", "minimum"}


class Bucket:
    """Parameters that share their numbers, of one dtype and on one device.

    Args:
        form: the form of all.
        params: the parameters.
        states: the state of each.
        grad_dtypes: the dtypes of the gradients that each will be updated with.
    """

    def __init__(
        self,
        form: Form,
        params: TensorList,
        states: Sequence[Mapping[str, Any]],
        grad_dtypes: Sequence[torch.dtype],
    ) -> None:
        self._form, self._recording = form, form.recording()
        self.dtype = params[0].dtype
        self._compute = compute = compute_dtype(params[0])
        self._stored = {
            "param": params,
            **{name: [state[name] for state in states] for name in form.array_slots},
        }
        self._scalar_slots = {name: [state[name] for state in states] for name in form.scalar_slots}
        dtypes = {name: [t.dtype for t in tensors] for name, tensors in self._stored.items()}
        dtypes["grad"] = list(grad_dtypes)
        self._is_plain = {name: all(d is compute for d in found) for name, found in dtypes.items()}
        # What is stored will be written anyway: at its last use it is as good as a temporary. A
        # gradient is not, unless what is read is a copy.
        inputs = self._recording.array_inputs
        self._owned = {inputs[name] for name in self._stored}
        if all(dtype.to_real() != compute for dtype in grad_dtypes):
            self._owned.add(inputs["grad"])
        self._is_kept = {
            name: self._recording.outputs[name] == self._recording.array_inputs[name]
            and tensors[0].dtype.to_real() == compute
            for name, tensors in self._stored.items()
        }

    def update(self, grads: TensorList, scalars: Mapping[str, Any]) -> None:
        """Update parameters and slots; step counts are the caller's.

        Args:
            grads: of the same dtypes as those of the leaves that the bucket was made of.
            scalars: the numbers of all.
        """
        recording, compute, names = self._recording, self._compute, self._stored.keys()
        VOCABULARY.dtype = compute
        values: dict[Value, Any] = recording.scalars(scalars)
        for name, tensors in [*self._stored.items(), ("grad", grads)]:
            values[recording.array_inputs[name]] = (
                tensors
                if self._is_plain[name]
                else [t if t.dtype is compute else real_view(t).to(compute) for t in tensors]
            )
        homes = {recording.array_inputs[name]: name for name in names}
        _replay(_instructions(self._form), recording, values, set(self._owned), homes, compute)
        # What lies in the memory of another output would be overwritten when that one is stored.
        for name in names:
            new = recording.outputs[name]
            if isinstance(new, Value) and homes.get(new, name) != name:
                values[new] = [tensor.clone() for tensor in values[new]]
        for name, tensors in self._stored.items():
            if self._is_kept[name]:
                continue
            made = _as_list(values, recording.outputs[name], len(tensors), compute)
            if made is tensors:  # all was updated in place
                continue
            # Only plain floats are stored by the tensors themselves; a format may do more.
            for target, value in zip(tensors, made, strict=True):
                if value is not target:  # it was not updated in place
                    format_of(target).write(target, value)
        for name, tensors in self._scalar_slots.items():
            new = recording.outputs[name]
            made = values[new] if isinstance(new, Value) else new
            for i, tensor in enumerate(tensors):
                tensor.fill_(made[i] if isinstance(made, list) else made)


def _as_list(
    values: dict[Value, Any], output: Value | float | None, count: int, compute: torch.dtype
) -> Any:
    value = values[output] if isinstance(output, Value) else output
    return value if isinstance(value, list) else [torch.tensor(value, dtype=compute)] * count


@functools.cache
def _instructions(form: Form) -> list[Instruction]:
    return instructions_of(form.recording())


def _replay(
    instructions: list[Instruction],
    recording: Recording,
    values: dict[Value, Any],
    owned: set[Value],
    homes: dict[Value, str],
    compute: torch.dtype,
) -> None:
    """Run the instructions, reusing the memory of what is needed no more.

    ``homes`` says in which stored array's memory a value lies.
    """
    last_use = {x: i for i, instruction in enumerate(instructions) for x in instruction.operands}
    kept = {x for x in recording.outputs.values() if isinstance(x, Value)}

    def is_last(x: Any, i: int) -> bool:
        return x in owned and x not in kept and last_use[x] == i

    def value_of(x: Any) -> Any:
        return values[x] if isinstance(x, Value) else x

    def number_of(x: Any, *, with_arrays: bool) -> Any:
        # What follows from a reduction is one number a tensor, in float64 as all scalars.
        is_wide = with_arrays and isinstance(x, Value) and not x.is_array
        found = value_of(x)
        as_numbers = isinstance(found, list) and (x in truths or is_wide)
        dtype = compute if with_arrays else torch.float64
        return [t.to(dtype) for t in found] if as_numbers else found

    truths: set[Value] = set()
    for i, instruction in enumerate(instructions):
        name, operands = instruction.name, instruction.operands
        if name in _COMMUTING and not is_last(operands[0], i):
            is_second_better = is_last(operands[1], i) or not _is_array(operands[0])
            operands = operands[::-1] if is_second_better else operands
        conditions = CONDITIONS.get(name, 0)
        has_arrays = any(map(_is_array, operands))
        arguments = [
            *map(value_of, operands[:conditions]),
            *(number_of(x, with_arrays=has_arrays) for x in operands[conditions:]),
        ]
        in_place = is_last(operands[0], i)
        if instruction.factor is None:
            result = _run(name, arguments, in_place=in_place)
        else:
            factor = instruction.sign * value_of(instruction.factor)
            result = _run_combined(name, arguments, factor, in_place=in_place)
        if in_place and operands[0] in homes:
            homes[instruction.result] = homes[operands[0]]
        for x in set(operands):
            if isinstance(x, Value) and is_last(x, i):
                del values[x]
                owned.discard(x)
        values[instruction.result] = result
        if name in TRUTHS:  # a number cannot be put in a truth value's place
            truths.add(instruction.result)
        elif instruction.result.is_array:
            owned.add(instruction.result)


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


def _run(name: str, arguments: list[Any], *, in_place: bool) -> TensorList:
    is_list = [isinstance(x, list) for x in arguments]
    if name in _UNARY or (name in _BINARY and is_list[0]):
        function = getattr(torch, _foreach_name(name, is_list) + ("_" if in_place else ""))
        result = function(*arguments)
        return cast(TensorList, arguments[0] if in_place else list(result))
    count = len(next(x for x, it_is in zip(arguments, is_list, strict=True) if it_is))
    columns = [x if it_is else [x] * count for x, it_is in zip(arguments, is_list, strict=True)]
    found = []
    for row in zip(*columns, strict=True):
        result = _PER_TENSOR[name](*row)
        # A choice may be one of its operands, which others may still need.
        found.append(result.clone() if any(result is x for x in row) else result)
    return found


def _foreach_name(name: str, is_list: list[bool]) -> str:
    if name in ("maximum", "minimum") and not all(is_list):
        name = {"maximum": "clamp_min", "minimum": "clamp_max"}[name]
    return f"_foreach_{name}"
