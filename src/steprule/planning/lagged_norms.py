"""Norms of the gradients of the step before, for steps that can't wait for all of this one's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from steprule.language.guards import clip_factor
from steprule.planning.step_record import StepRecord, exact_sum


@dataclass
class LaggedNorms:
    """Sums of squares of each group's gradients, of this step and of the one before.

    Attributes:
        record: what is left for who asks.
        present: of each group, the sums of this step's gradients so far.
        before: those of the step before; empty at the first.
    """

    record: StepRecord
    present: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    before: dict[int, list[float]] = field(default_factory=dict)
    _factors: dict[int, Any] = field(default_factory=dict)

    def add(self, group: int, squares: float) -> None:
        """Add a gradient's sum of squares."""
        self.present[group].append(squares)

    def factor(self, group: int, bound: Any, over: str) -> Any:
        """Return what a gradient of a group is multiplied by: 1 at the first step.

        Args:
            group: its index.
            bound: what the norm may be.
            over: whether the norm is of ``"all"`` groups that are clipped, or of the ``"group"``.
        """
        found: Any = 1.0
        if self.before:
            groups = self.before if over == "all" else {group: self.before.get(group, [])}
            squares = exact_sum(x for of_group in groups.values() for x in of_group)
            found = clip_factor(bound, math.sqrt(squares))
        self._factors[group] = found
        return found

    def turn(self, groups: int) -> None:
        """End a step of so many groups."""
        if not self.present:
            return
        sums: list[tuple[Sequence[float], Sequence[int]]] = [
            (squares, [group] * len(squares)) for group, squares in self.present.items()
        ]
        self.record.note(sums, [self._factors.get(i) for i in range(groups)])
        self.before, self.present = dict(self.present), defaultdict(list)
        self._factors = {}
