"""The foreach engine: the recording replayed over lists of tensors, ``torch._foreach_*``."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor

from steprule.engines import Leaf, Numbers
from steprule.engines.combined import Instruction, instructions_of
from steprule.engines.eager import VOCABULARY, supply_scalars
from steprule.formats import format_of
from steprule.formats.floating import compute_dtype, real_view
from steprule.recording import NUMBER_OPERATIONS, TRUTHS, Recording, Value
from steprule.rule import SUPPLIED
from steprule.shared_terms import Form

TensorList = list[Tensor]

_PER_TENSOR: dict[str, Callable[..., Any]] = {
    **NUMBER_OPERATIONS,
    "and": torch.logical_and,
    "or": torch.logical_or,
    "not": torch.logical_not,
    **{
        name: getattr(VOCABULARY, name)
        for name in ("sqrt", "exp", "log", "sign", "maximum", "minimum", "where")
    },
}
# Operations that exist on lists, whatever mix of lists and numbers they are given.
_UNARY = {"sqrt", "exp", "log", "sign", "neg", "abs"}
_BINARY = {"add", "sub", "mul", "div", "pow", "maximum", "minimum"}
# Numbers that a parameter has of its own.
_SUPPLIED = set(SUPPLIED)
_COMMUTING = {"add", "mul", "maximum", "minimum"}


class ForeachEngine:
    """Replays the recording over all parameters that share their numbers at once."""

    name = "foreach"

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Refuses what needs a tensor as a scalar, or is not a plain tensor."""
        if not form.rule.elementwise:
            return "the rule works on whole tensors, not on elements"
        if form.capturable:
            return "capturable=True keeps the step count a tensor, one for each parameter"
        for tensor in (leaf.param, leaf.grad):
            if type(tensor) not in (Tensor, torch.nn.Parameter):
                return f"{type(tensor).__name__} is a tensor subclass"
        return None

    def apply(self, form: Form, leaves: Sequence[Leaf], numbers: Numbers) -> None:
        """Update the leaves, those with equal numbers and dtypes together."""
        recording = form.recording()
        buckets: dict[Any, tuple[dict[str, Any], list[Leaf]]] = {}
        alike = _alike(leaves, numbers)
        has_own = form.rule.counts_steps or form.scalar_slots or _SUPPLIED & set(form.scalars)
        steps = []
        for leaf in leaves:
            own: dict[str, Any] = {}
            step = supply_scalars(form, leaf, own) if has_own else None
            if isinstance(step, Tensor):
                steps.append(step)
            key = (alike[leaf.group], leaf.param.dtype, leaf.param.device, *own.values())
            found = buckets.get(key)
            if found is None:
                found = buckets[key] = ({**numbers[leaf.group], **own}, [])
            found[1].append(leaf)
        for scalars, bucket in buckets.values():
            _update(form, recording, bucket, scalars)
        if steps:
            torch._foreach_add_(steps, 1.0)


def _alike(leaves: Sequence[Leaf], numbers: Numbers) -> dict[int, int]:
    """For each group the first one that has the same numbers."""
    first: dict[Any, int] = {}
    groups = dict.fromkeys(leaf.group for leaf in leaves)
    return {group: first.setdefault(tuple(numbers[group].values()), group) for group in groups}


def _update(form: Form, recording: Recording, leaves: list[Leaf], scalars: dict[str, Any]) -> None:
    names = ("param", *form.array_slots)
    stored = [
        [leaf.param for leaf in leaves],
        *([leaf.state[name] for leaf in leaves] for name in form.array_slots),
    ]
    compute = VOCABULARY.dtype = compute_dtype(leaves[0].param)
    values: dict[Value, Any] = recording.scalars(scalars)
    owned: set[Value] = set()
    for name, tensors in [*zip(names, stored, strict=True), ("grad", [x.grad for x in leaves])]:
        value = recording.array_inputs[name]
        values[value] = [t if t.dtype is compute else real_view(t).to(compute) for t in tensors]
        # What is stored will be written anyway: at its last use it is as good as a temporary.
        if name != "grad" or all(t.dtype.to_real() != compute for t in tensors):
            owned.add(value)
    homes = {recording.array_inputs[name]: name for name in names}
    _replay(_instructions(form), recording, values, owned, homes)
    # What lies in the memory of another output would be overwritten when that one is stored.
    for name in names:
        new = recording.outputs[name]
        if isinstance(new, Value) and homes.get(new, name) != name:
            values[new] = [tensor.clone() for tensor in values[new]]
    for name, tensors in zip(names, stored, strict=True):
        new = recording.outputs[name]
        if new == recording.array_inputs[name] and tensors[0].dtype.to_real() == compute:
            continue
        # Only plain floats are stored by the tensors themselves; a format may do more.
        for target, value in zip(tensors, _as_list(values, new, len(leaves)), strict=True):
            if value is not target:  # it was not updated in place
                format_of(target).write(target, value)
    for name in form.scalar_slots:
        new = recording.outputs[name]
        for leaf in leaves:
            leaf.state[name].fill_(values[new] if isinstance(new, Value) else new)


def _as_list(values: dict[Value, Any], output: Value | float | None, count: int) -> Any:
    value = values[output] if isinstance(output, Value) else output
    return value if isinstance(value, list) else [torch.tensor(value)] * count


@functools.cache
def _instructions(form: Form) -> list[Instruction]:
    return instructions_of(form.recording())


def _replay(
    instructions: list[Instruction],
    recording: Recording,
    values: dict[Value, Any],
    owned: set[Value],
    homes: dict[Value, str],
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

    for i, instruction in enumerate(instructions):
        name, operands = instruction.name, instruction.operands
        if name in _COMMUTING and not is_last(operands[0], i):
            is_second_better = is_last(operands[1], i) or not _is_array(operands[0])
            operands = operands[::-1] if is_second_better else operands
        arguments = [value_of(x) for x in operands]
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
        if name not in TRUTHS:  # a number cannot be put in a truth value's place
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
