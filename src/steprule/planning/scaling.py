"""Steps of a gradient scaler (``torch.amp.GradScaler``): gradients to be divided, or no step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor


@dataclass
class Scaling:
    """What a scaler leaves at the optimizer for one step.

    Attributes:
        found_inf: one number: not 0 if any gradient is infinite or nan, which calls the step off.
        grad_scale: what gradients were multiplied by; None if they have been divided already.
    """

    found_inf: Tensor
    grad_scale: Tensor | None

    @property
    def kind(self) -> tuple[bool, bool]:
        """What a plan depends on: whether steps may be called off, and gradients are scaled."""
        return True, self.grad_scale is not None


@runtime_checkable
class CalledOffOnDevice(Protocol):
    """A runner that asks on the device whether a step is called off, so that nobody waits."""

    def call_off_by(self, found_inf: Tensor) -> None:
        """Take no step where this number is not 0, from the next ``run`` on."""


@runtime_checkable
class KnowsFirstUpdates(Protocol):
    """A runner whose device knows which steps were taken."""

    def first_updates_left(self) -> Sequence[Tensor] | None:
        """Return the parameters that were never updated, waiting; None if the host knows."""


def kind_of(scaling: Scaling | None) -> tuple[bool, bool]:
    """Return what a plan depends on of a step's scaling."""
    return (False, False) if scaling is None else scaling.kind
