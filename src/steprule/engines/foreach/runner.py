"""Leaves of the foreach engine, kept from step to step: lists are made once, not at each step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from steprule.engines import Leaf, Numbers
from steprule.engines.batch import LeafBatch
from steprule.engines.foreach.bucket import Bucket, alike_groups
from steprule.engines.guards.identity import SameObjects
from steprule.engines.guards.tensors import Likeness
from steprule.language.form import Form


class ForeachBatch:
    """Leaves in lists, those together whose groups have the same numbers.

    Args:
        form: the form of all.
        leaves: such that :meth:`takes` holds.
        plain: the same leaves, for steps in which they are not at the same step.
    """

    def __init__(self, form: Form, leaves: Sequence[Leaf], plain: LeafBatch) -> None:
        self._form, self._plain = form, plain
        self._params = [leaf.param for leaf in leaves]
        self._states = [leaf.state for leaf in leaves]
        self._grad_dtypes = [leaf.grad.dtype for leaf in leaves]
        self._groups = [leaf.group for leaf in leaves]
        self._distinct_groups = tuple(dict.fromkeys(self._groups))
        self._columns = {name: [state[name] for state in self._states] for name in _names(form)}
        self._same = {name: SameObjects(column) for name, column in self._columns.items()}
        self._tensors = [tensor for column in self._columns.values() for tensor in column]
        self._likeness = Likeness(self._tensors) if self._tensors else None
        self._alike: dict[int, int] = {}
        self._parts: list[tuple[int, list[int], Bucket]] = []

    @staticmethod
    def takes(form: Form, leaves: Sequence[Leaf]) -> bool:
        """Whether all state is plain tensors, and the counts are of one kind and in one place."""
        states = [leaf.state for leaf in leaves]
        are_plain = all(type(state[name]) is Tensor for name in _names(form) for state in states)
        if not are_plain:
            return False
        counts = [state[name] for name in _counts(form) for state in states]
        kinds = {(count.dtype, count.device) for count in counts}
        return len(kinds) <= 1 and all(dtype.is_floating_point for dtype, _ in kinds)

    def holds(self) -> bool:
        are_same = all(
            same.are([state.get(name) for state in self._states])
            for name, same in self._same.items()
        )
        return are_same and (self._likeness is None or self._likeness.holds(self._tensors))

    def run(self, grads: Sequence[Tensor], numbers: Numbers) -> None:
        own = self._own_numbers()
        if own is None:
            self._plain.run(grads, numbers)
            return
        alike = alike_groups(self._distinct_groups, numbers)
        if alike != self._alike:
            self._alike, self._parts = alike, self._parts_of(alike)
        for group, places, bucket in self._parts:
            scalars = {**numbers[group], **own}
            if "machine_eps" in self._form.scalars:
                scalars["machine_eps"] = torch.finfo(bucket.dtype).eps
            bucket.update([grads[i] for i in places], scalars)
        if self._form.rule.counts_steps:
            torch._foreach_add_(self._columns["step"], 1.0)

    def _own_numbers(self) -> dict[str, Any] | None:
        """What each parameter has of its own; None unless it is the same for all."""
        if torch.is_grad_enabled():
            return None
        own: dict[str, Any] = {"first": False}
        for name in _counts(self._form):
            if name in self._form.scalars or name != "step":
                found = set(torch.stack(self._columns[name]).tolist())
                if len(found) > 1:
                    return None
                own[name] = found.pop() + (name == "step")
        return own

    def _parts_of(self, alike: dict[int, int]) -> list[tuple[int, list[int], Bucket]]:
        places: dict[Any, list[int]] = {}
        for i, (group, param) in enumerate(zip(self._groups, self._params, strict=True)):
            places.setdefault((alike[group], param.dtype, param.device), []).append(i)
        return [
            (
                group,
                where,
                Bucket(
                    self._form,
                    [self._params[i] for i in where],
                    [self._states[i] for i in where],
                    [self._grad_dtypes[i] for i in where],
                ),
            )
            for (group, *_), where in places.items()
        ]


def _counts(form: Form) -> tuple[str, ...]:
    return (*(["step"] * form.rule.counts_steps), *form.scalar_slots)


def _names(form: Form) -> tuple[str, ...]:
    return (*_counts(form), *form.array_slots)
