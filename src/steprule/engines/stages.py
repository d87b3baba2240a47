"""Updates in stages: a rule with sums over several parameters waits for what others add to them.

A runner of such a rule gives a generator in place of one call: it yields what its leaves add to the
reductions that it has come to, is sent the totals, and goes on. Who runs it adds up what all
runners yield (``planning/staged_run.py``): the one place where parameters, and one day ranks, meet.
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
        key: which one, among ``Recording.shared_reductions``.
        values: of each leaf that has a gradient: a float64 number, or a tensor of one; or a tensor
            of them all, which are of one group then.
        groups: each leaf's group.
        elements: how many numbers each leaf has.
    """

    key: int
    values: Sequence[Any] | Tensor
    groups: Sequence[int]
    elements: Sequence[int]


# For each key, the total for each group.
Totals: TypeAlias = Mapping[int, Mapping[int, Any]]
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
