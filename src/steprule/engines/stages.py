"""Updates in stages: a rule with sums over several parameters waits for what others add to them.

A runner of such a rule gives a generator in place of one call: it yields what its leaves add to the
reductions that it has come to (those of one level at a time: none depends on another), is sent the
totals, and goes on. Who runs it adds up what all runners yield, and all ranks where parameters are
sharded (``planning/staged_run.py``): the one place where parameters and ranks meet.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """What some leaves add to one reduction.

    Attributes:
        key: which one, as in ``Recording.shared_keys``.
        values: of each leaf that has a gradient: a float64 number, or a tensor of one; or a tensor
            of them all, which are of one group then.
        groups: each leaf's group.
        elements: how many numbers each leaf has; of a sharded one, in all processes.
        numbers: of each leaf, which it is among the optimizer's sharded parameters; -1 for one
            that this process has whole.
        told: what a matrix operation is told for each leaf; its values are what is here of them.
    """

    key: int
    values: Sequence[Any] | Tensor
    groups: Sequence[int]
    elements: Sequence[int]
    numbers: Sequence[int]
    told: Sequence[tuple[Any, ...]] = ()


# For each key, the total for each group; of a sum over the shards of one parameter, for each number
# among the sharded parameters.
Totals: TypeAlias = Mapping[int, Any]
Stages: TypeAlias = Generator[Sequence[Share], Totals, None]


@runtime_checkable
class RunsInStages(Protocol):
    """A runner of rules with sums over several parameters."""

    def stages(self) -> Stages:
        """Update the leaves that have a gradient, as ``run`` would."""


def sent(stages: Stages, totals: Totals) -> Sequence[Share] | None:
    """Send totals to an update; return what it asks for next, None if it is done."""
    try:
        return stages.send(totals)
    except StopIteration:
        return None


def run_through(stages: Stages) -> None:
    """Carry out an update by a rule that has no sums over several parameters."""
    for _ in stages:
        raise AssertionError("a rule with sums over several parameters runs in stages")


def as_tensor(total: Any, like: Tensor) -> Tensor:
    """Return a total as a tensor, as rules on tensors have their numbers."""
    if isinstance(total, Tensor):
        return total
    return torch.full((), total, dtype=like.dtype, device=like.device)
