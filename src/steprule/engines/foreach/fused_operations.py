"""Operations of a recording put together into those that ``torch._foreach_*`` does in one pass.

``a + s * x``, ``a + s * x * y`` and ``a + s * x / y`` (and with a minus) are most of what update
rules are made of; each saves a temporary list and a pass over memory or, on a GPU, a kernel.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from steprule import ops
from steprule.language.recording import TRUTHS, Operation, Recording, Value

Operand = Value | float


@dataclass(frozen=True)
class Instruction:
    """One pass: ``name`` over the arrays and numbers of ``operands``.

    ``scaled``, ``addcmul`` and ``addcdiv`` add to their first operand ``factor`` times the second,
    the product of the second and third, or their quotient; ``sign`` goes with the factor.
    """

    name: str
    result: Value
    operands: tuple[Operand, ...]
    factor: Operand | None = None
    sign: float = 1.0
    settings: tuple[Any, ...] = ()
    axis: ops.Axis = None


def instructions_of(recording: Recording) -> list[Instruction]:
    """Return the operations on tensors, combined where a part is used nowhere else.

    A rule with reductions is left as it is: its factors are not the same for all tensors.
    """
    if recording.has_reductions:
        return [_plain(x) for x in recording.tensor_operations]
    return _Combiner(recording).run()


def _plain(operation: Operation) -> Instruction:
    return Instruction(
        operation.name,
        operation.result,
        operation.operands,
        settings=operation.settings,
        axis=operation.axis,
    )


class _Combiner:
    def __init__(self, recording: Recording) -> None:
        self._operations: Sequence[Operation] = recording.array_operations
        self._makers = {operation.result: operation for operation in self._operations}
        self._uses = Counter(
            x for operation in self._operations for x in operation.operands if isinstance(x, Value)
        )
        self._uses.update(x for x in recording.outputs.values() if isinstance(x, Value))
        self._absorbed: set[Value] = set()
        self._has_truths = any(operation.name in TRUTHS for operation in self._operations)

    def run(self) -> list[Instruction]:
        # From the back: what is absorbed is then known before its own turn.
        found = [
            self._combined(operation)
            for operation in reversed(self._operations)
            if operation.result not in self._absorbed
        ]
        return found[::-1]

    def _combined(self, operation: Operation) -> Instruction:
        plain = _plain(operation)
        if operation.name not in ("add", "sub") or self._has_truths:
            return plain
        pairs = [operation.operands]
        if operation.name == "add":
            pairs.append(operation.operands[::-1])
        for base, other in pairs:
            product = self._maker(other, "mul")
            if product is not None and _is_array(base):
                self._absorbed.add(product.result)
                name, arrays, factor = self._terms(product)
                sign = 1.0 if operation.name == "add" else -1.0
                return Instruction(name, operation.result, (base, *arrays), factor, sign)
        return plain

    def _terms(self, product: Operation) -> tuple[str, tuple[Operand, ...], Operand]:
        """Return a product as the array or arrays that it is of, and a number."""
        for x, y in (product.operands, product.operands[::-1]):
            if not _is_array(y):
                for kind, name in (("mul", "addcmul"), ("div", "addcdiv")):
                    inner = self._maker(x, kind)
                    if inner is not None and all(map(_is_array, inner.operands)):
                        self._absorbed.add(inner.result)
                        return name, inner.operands, y
                return "scaled", (x,), y
        for x, y in (product.operands, product.operands[::-1]):
            inner = self._maker(x, "mul")
            if inner is not None:
                for array, number in (inner.operands, inner.operands[::-1]):
                    if not _is_array(number):
                        self._absorbed.add(inner.result)
                        return "addcmul", (array, y), number
        return "addcmul", product.operands, 1.0

    def _maker(self, x: Operand, name: str) -> Operation | None:
        """Return what made an array that is used only here, if it was such an operation."""
        if not isinstance(x, Value) or not x.is_array or self._uses[x] != 1:
            return None
        maker = self._makers.get(x)
        return maker if maker is not None and maker.name == name else None


def _is_array(x: Operand) -> bool:
    return isinstance(x, Value) and x.is_array
