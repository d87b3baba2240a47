"""What matrix operations the fused engine's kernels can have in their midst."""

from __future__ import annotations

from steprule.engines.engine import Leaf
from steprule.language.form import Form
from steprule.language.recording import SPREADABLE, Recording, Value
from steprule.language.rule import SUPPLIED


def matrix_refusal(leaf: Leaf, form: Form) -> str | None:
    """Say why the kernel can't take a rule's matrix operations; None if it can, or has none."""
    recording = form.recording()
    operations = recording.matrix_operations
    if not operations:
        return None
    if any(x.name not in SPREADABLE for x in operations):
        return "it has square matrices for its sides, which torch's libraries work on"
    if form.is_sharded:
        return "its matrix is spread over ranks, one of which works on it"
    if len(operations) > 1 or recording.has_reductions:
        return "the rule has more than one matrix operation, or reductions beside it"
    if not all(x in numbers_by_operand(recording) for x in _scalar_operands(recording)):
        return "the rule computes what its matrix operation is told"
    if leaf.param.ndim < 2 or not leaf.param.is_contiguous():
        return "the parameter is no matrix in the order of its rows"
    return None


def numbers_by_operand(recording: Recording) -> dict[Value, str]:
    """Return the names of the numbers that a matrix operation may be told."""
    return {v: name for name, v in recording.scalar_inputs.items() if name not in SUPPLIED}


def _scalar_operands(recording: Recording) -> list[Value]:
    operands = recording.matrix_operations[0].operands[1:]
    return [x for x in operands if isinstance(x, Value)]
