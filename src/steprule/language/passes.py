"""A recording with reductions or matrix operations, cut into passes over a parameter's elements.

What a reduction is of must be known before the reduction, and the reduction before what follows
from it. So the elements are read once for each level of reductions, and once more to update them.
A matrix operation stands between passes as a reduction does; its result is an array, which later
passes read.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from dataclasses import dataclass

from steprule.language.recording import (
    MATRIX_OPERATIONS,
    REDUCTIONS,
    Operation,
    Recording,
    Value,
)


@dataclass(frozen=True)
class Pass:
    """One reading of the elements that updates none.

    Attributes:
        array_operations: for each element, from the inputs on to what the reductions are of.
        reductions: over all elements.
        scalar_operations: once for the parameter, when its reductions are known.
        matrix_operations: on the whole parameter, when all its elements are.
    """

    array_operations: tuple[Operation, ...]
    reductions: tuple[Operation, ...]
    scalar_operations: tuple[Operation, ...]
    matrix_operations: tuple[Operation, ...] = ()

    @property
    def is_shared(self) -> bool:
        """Whether one of its reductions is over several parameters."""
        return any(x.is_shared for x in self.reductions)


def passes_of(recording: Recording) -> tuple[Pass, ...]:
    """Return the passes before the one that updates; none for a rule without reductions."""
    levels = levels_of(recording)
    passes = []
    for level in range(1, max(levels.values(), default=0) + 1):
        of_level = [x for x in recording.tensor_operations if levels[x.result] == level]
        scalars = [x for x in of_level if not x.result.is_array]  # or one for each row, or column
        reductions = tuple(x for x in scalars if x.name in REDUCTIONS)
        matrices = tuple(x for x in of_level if x.name in MATRIX_OPERATIONS)
        wanted = [x for operation in (*reductions, *matrices) for x in operation.operands]
        passes.append(
            Pass(
                array_operations=operations_for(recording, wanted),
                reductions=reductions,
                scalar_operations=tuple(x for x in scalars if x.name not in REDUCTIONS),
                matrix_operations=matrices,
            )
        )
    return tuple(passes)


def shared_levels_of(recording: Recording) -> tuple[tuple[Operation, ...], ...]:
    """Return the reductions over several parameters or processes, those together that can be.

    None of those that come together depends on another.
    """
    levels = levels_of(recording)
    shared = recording.shared_reductions
    return tuple(
        tuple(x for x in shared if levels[x.result] == level)
        for level in sorted({levels[x.result] for x in shared})
    )


def update_operations(recording: Recording) -> tuple[Operation, ...]:
    """Return the array operations of the last pass: those that the outputs are made by."""
    return operations_for(recording, recording.outputs.values())


def described(recording: Recording) -> str:
    """Return the passes in words, for people: "2 passes: dot_of, max_of; update"."""
    passes = passes_of(recording)
    names = [", ".join(map(_named, (*x.reductions, *x.matrix_operations))) for x in passes]
    return f"{len(passes) + 1} passes over its elements: {'; '.join([*names, 'update'])}"


def _named(reduction: Operation) -> str:
    if reduction.axis is not None:
        return f"{reduction.name} of {'rows' if reduction.axis == -1 else 'columns'}"
    return f"{reduction.name} over {reduction.over}" if reduction.is_shared else reduction.name


def levels_of(recording: Recording) -> dict[Value, int]:
    """Return how many reductions, one after the other, stand before each quantity.

    Those over several parameters come in the order in which the rule has them, so that engines
    which ask for them one by one and in passes can be asked in turn.
    """
    levels: dict[Value, int] = {}
    latest = 0
    for operation in recording.tensor_operations:
        known = [levels.get(x, 0) for x in operation.operands if isinstance(x, Value)]
        level = max(known) + (operation.name in REDUCTIONS | MATRIX_OPERATIONS)
        if operation.is_shared:
            level = latest = max(level, latest)
        levels[operation.result] = level
    return levels


def operations_for(
    recording: Recording,
    wanted: Iterable[Value | float | None],
    known: Container[Value] = (),
) -> tuple[Operation, ...]:
    """Return the array operations that lead to these quantities, in order.

    What is ``known`` is there already, as are the results of matrix operations.
    """
    needed = {x for x in wanted if isinstance(x, Value) and x.is_array}
    kept = []
    for operation in reversed(recording.array_operations):
        is_known = operation.result in known or operation.name in MATRIX_OPERATIONS
        if operation.result in needed and not is_known:
            needed.update(x for x in operation.operands if isinstance(x, Value) and x.is_array)
            kept.append(operation)
    return tuple(kept[::-1])
