"""Leaves that an engine updates step after step: only gradients and numbers are new."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from steprule.engines import Engine, Leaf, Numbers
from steprule.language.form import Form


class Batch(Protocol):
    """What is kept of one step's leaves for the next; never their gradients."""

    def holds(self) -> bool:
        """Whether the leaves' state is still there."""

    def run(self, grads: Sequence[Tensor], numbers: Numbers) -> None:
        """Update the leaves, given their new gradients; none is updated for the first time."""


class LeafBatch:
    """For any engine: leaves made anew of what is known."""

    def __init__(self, engine: Engine, form: Form, leaves: Sequence[Leaf]) -> None:
        self._engine, self._form = engine, form
        self._known = [(x.param, x.state, x.group, x.label) for x in leaves]
        self._keys = [frozenset(leaf.state) for leaf in leaves]

    def holds(self) -> bool:
        return all(
            keys <= state.keys()
            for keys, (_, state, _, _) in zip(self._keys, self._known, strict=True)
        )

    def run(self, grads: Sequence[Tensor], numbers: Numbers) -> None:
        leaves = [
            Leaf(param, grad, state, group, False, label)
            for grad, (param, state, group, label) in zip(grads, self._known, strict=True)
        ]
        self._engine.apply(self._form, leaves, numbers)
