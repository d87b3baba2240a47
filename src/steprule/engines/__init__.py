"""Engines: what runs a recorded rule on tensors.

An engine is given a :class:`~steprule.shared_terms.Form` (a rule with its flags fixed) and
:class:`Leaf` objects (a parameter, its gradient and its state). It knows nothing of optimizers.
Every engine must agree with ``eager``, within rounding; it may say of a leaf why it can't take
it, and the planner then asks the next one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from steprule.language.form import Form

if TYPE_CHECKING:
    from steprule.engines.batch import Batch

ENGINE_NAMES = ("eager", "foreach", "fused")


@dataclass
class Leaf:
    """One parameter that has a gradient, as the planner saw it.

    Attributes:
        param: the parameter.
        grad: its gradient at this step.
        state: its entry in ``optimizer.state``.
        group: index of its group.
        is_first: whether this is its first update.
        label: how messages name it.
    """

    __slots__ = ("grad", "group", "is_first", "label", "param", "state")
    param: Tensor
    grad: Tensor
    state: dict[str, Any]
    group: int
    is_first: bool
    label: str


# A group's numbers by name, for each group: lr, beta1, weight_decay…
Numbers = Mapping[int, Mapping[str, Any]]


class Engine(Protocol):
    """What the planner asks of an engine."""

    name: str

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Why this engine can't update the leaf; None if it can."""

    def apply(self, form: Form, leaves: Sequence[Leaf], numbers: Numbers) -> None:
        """Update the leaves: their parameters, slots and step counts."""

    def batch(self, form: Form, leaves: Sequence[Leaf]) -> Batch:
        """The same leaves, to be updated again at the steps to come."""
