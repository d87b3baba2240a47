"""Norms of the gradients of the step before, for steps that can't wait for all of this one's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steprule.language.guards import clip_factor
from steprule.planning.step_record import StepRecord, exact_sum

#: The key of a group that has its last finite sum of squares: saved with it, for who resumes.
SQUARES = "last_grad_squares"


@dataclass
class LaggedNorms:
    """Sums of squares of each group's gradients, of this step and of the one before.

    Attributes:
        groups: the optimizer's; those that are clipped keep the sum of the step before.
        record: what is left for who asks.
        present: of each group, the sums of this step's gradients so far.
    """

    groups: Sequence[MutableMapping[str, Any]]
    record: StepRecord
    present: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    _factors: dict[int, Any] = field(default_factory=dict)

    def add(self, group: int, squares: float) -> None:
        """Add a gradient's sum of squares."""
        self.present[group].append(squares)

    def factor(self, group: int, bound: Any, over: str) -> Any:
        """Return what a gradient of a group is multiplied by: 1 if there was no step before.

        Args:
            group: its index.
            bound: what the norm may be.
            over: whether the norm is of ``"all"`` groups that are clipped, or of the ``"group"``.
        """
        asked = self.groups if over == "all" else [self.groups[group]]
        squares = [one[SQUARES] for one in asked if SQUARES in one]
        found = clip_factor(bound, math.sqrt(exact_sum(squares))) if squares else 1.0
        self._factors[group] = found
        return found

    def turn(self) -> None:
        """End a step.

        What is not finite bounds nothing: the norm of the step before it remains.
        """
        sums: list[tuple[Sequence[float], Sequence[int]]] = []
        for i, group in enumerate(self.groups):
            if group.get("clip_grad_norm") is None:
                group.pop(SQUARES, None)
            if i in self.present:
                sums.append((self.present[i], [i] * len(self.present[i])))
                squares = exact_sum(self.present[i])
                if math.isfinite(squares):
                    group[SQUARES] = squares
        if sums:
            self.record.note(sums, [self._factors.get(i) for i in range(len(self.groups))])
        else:
            self.record.clear()
        self.present, self._factors = defaultdict(list), {}
