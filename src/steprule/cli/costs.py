"""What a step costs for each element of a parameter, counted in an optimizer's recorded rule."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from steprule.language.form import form_of
from steprule.language.passes import passes_of, update_operations
from steprule.language.recording import MATRIX_OPERATIONS, Operation, Value
from steprule.optimizer import Optimizer

# Of a matrix with more than one row and column; and float32.
_SHAPE, _BYTES = (64, 64), 4


@dataclass(frozen=True)
class StepCost:
    """The cost of a step for each element of a square float32 matrix.

    Attributes:
        operations: on elements, each addition, product or root being one; matrix operations,
            whose cost is of another order, are not among them.
        moved_bytes: read and written, where nothing is kept in caches between passes.
        passes: how often elements are read.
        has_matrix_operations: whether whole matrices are worked on between passes.
    """

    operations: int
    moved_bytes: int
    passes: int
    has_matrix_operations: bool


def step_cost_of(cls: type[Optimizer]) -> StepCost | None:
    """Return what a step costs with the default options; None where no recording says it."""
    if cls.rule is None or not cls.rule.is_recorded:
        return None
    options = {**cls.extras, **default_group_of(cls)}
    recording = form_of(cls.rule, options).of_shape(_SHAPE).recording()
    passes = passes_of(recording)
    update = update_operations(recording)
    written = sum(isinstance(x, Value) and x.is_array for x in recording.outputs.values())
    read = sum(
        _arrays_read([*each.array_operations, *each.reductions, *each.matrix_operations])
        for each in passes
    )
    return StepCost(
        operations=sum(len(x.array_operations) + len(x.reductions) for x in passes) + len(update),
        moved_bytes=_BYTES * (read + _arrays_read(update) + written),
        passes=len(passes) + 1,
        has_matrix_operations=bool(recording.matrix_operations),
    )


def default_group_of(cls: type[Optimizer]) -> dict[str, object]:
    """Return the options of a group that an optimizer was made of without any."""
    param = torch.zeros(_SHAPE, device="meta", requires_grad=True)
    make: Callable[..., Optimizer] = cls
    return dict(make([param]).param_groups[0])


def _arrays_read(operations: Sequence[Operation]) -> int:
    """Return how many arrays are read: inputs, and what a matrix operation has left."""
    made = {x.result for x in operations if x.name not in MATRIX_OPERATIONS}
    operands = {x for operation in operations for x in operation.operands}
    return sum(isinstance(x, Value) and x.is_array and x not in made for x in operands)
