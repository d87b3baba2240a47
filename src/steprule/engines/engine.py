"""The contract between the planner and the engines; every engine and runner stands behind it."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from steprule.distributed.regions import Region
from steprule.distributed.shards import Shard
from steprule.formats.storage import Storage
from steprule.language.form import Form

# A group's numbers by name: lr, beta1, weight_decay…; floats, or tensors where a group asks for it.
Numbers = Mapping[str, Any]

NO_STORAGE = Storage((), ())


@dataclass(slots=True)
class Leaf:
    """One parameter with a gradient: where it stands, and what updates it.

    Of a sharded parameter, ``param``, ``grad`` and ``state`` are what this process has.
    """

    param: Tensor
    grad: Tensor
    state: dict[str, Any]  # its entry in `optimizer.state`
    group: int
    position: int  # within its group
    is_first: bool  # whether it was never updated
    label: str  # how messages name it
    storage: Storage = NO_STORAGE  # of the parameter and its arrays, once there is all state
    random_key: int = 0  # what random bits know it by
    shard: Shard | None = None  # if it is of a sharded parameter
    entry: dict[str, Any] | None = None  # the entry in `optimizer.state`, if it is sharded
    region: Region | None = None  # which elements are here, if it is sharded
    own_number: int = -1  # which it is among parameters that ranks update for each other

    @property
    def owner(self) -> Tensor:
        """The parameter as the optimizer has it."""
        return self.param if self.shard is None else self.shard.owner

    @property
    def shape(self) -> torch.Size:
        """The shape of the whole parameter."""
        return self.owner.shape

    @property
    def elements(self) -> int:
        """How many real numbers the whole parameter has."""
        return self.owner.numel() * (2 if self.param.is_complex() else 1)

    @property
    def is_spread(self) -> bool:
        """Whether its elements are on several ranks."""
        return self.shard is not None and bool(self.shard.groups)

    @property
    def number(self) -> int:
        """Which it is among parameters whose sums processes share; -1 for any other."""
        if self.shard is None:
            return self.own_number
        return self.shard.number if self.shard.groups else -1


class UnavailableError(RuntimeError):
    """An engine can't make a runner after all; says why. The next engine takes the leaves."""


class Runner(Protocol):
    """Updates the same leaves step after step; between steps it holds no gradient."""

    def set_numbers(self, group: int, numbers: Numbers) -> None:
        """Put a group's numbers in force from the next ``run`` on."""

    def collect(self) -> bool:
        """Take this step's gradients; False if anything is not as it was planned: plan anew."""

    def run(self) -> None:
        """Update the leaves that have a gradient: parameter, state, step count."""

    def let_go(self) -> None:
        """Drop the gradients that were taken: the step is done, or will not be."""


@runtime_checkable
class SaysOfItself(Protocol):
    """A runner that has something to say in ``explain()``."""

    def note(self) -> str:
        """Return it, as a line."""


def runner_note(runner: Runner) -> str:
    """Return what a runner has to say of itself; empty if it has nothing."""
    return runner.note() if isinstance(runner, SaysOfItself) else ""


class Engine(Protocol):
    """Runs a recorded rule on tensors. Every engine agrees with ``eager``, within rounding."""

    name: str
    #: Whether it reaches memory by address: then no two leaves may share memory, and no dispatch
    #: mode, which would see nothing, may be active.
    by_address: bool

    def refusal(self, leaf: Leaf, form: Form) -> str | None:
        """Say why this engine can't update the leaf; None if it can."""

    def bucket_key(self, leaf: Leaf, form: Form) -> Hashable:
        """Return what leaves of one form must have in common to share a runner."""

    def runner(self, form: Form, leaves: Sequence[Leaf]) -> Runner:
        """Make the runner of some leaves. Raises :class:`UnavailableError`."""
