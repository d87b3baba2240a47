"""Norms of the gradients of the step before, for steps that can't wait for all of this one's."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any

from torch import Tensor

from steprule.distributed.shards import Shard, shards_of
from steprule.language.guards import clip_factor
from steprule.planning.rank_sums import RankSums
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
        parts: of each parameter that is spread over ranks, its group and what is here of its sum.
    """

    groups: Sequence[MutableMapping[str, Any]]
    record: StepRecord
    present: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    parts: dict[Tensor, tuple[int, float]] = field(default_factory=dict)
    _factors: dict[int, Any] = field(default_factory=dict)
    _spread: tuple[tuple[Tensor, ...], list[Shard], RankSums | None] | None = None

    def add(self, group: int, squares: float) -> None:
        """Add a gradient's sum of squares."""
        self.present[group].append(squares)

    def add_part(self, group: int, param: Tensor, squares: float) -> None:
        """Add what is here of the sum of squares of a gradient that is spread over ranks."""
        self.parts[param] = group, squares

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
        """End a step: for parameters that are spread over ranks, with a message to all of these.

        What is not finite bounds nothing: the norm of the step before it remains.
        """
        self._add_over_ranks()
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
        self.present, self.parts, self._factors = defaultdict(list), {}, {}

    def _add_over_ranks(self) -> None:
        """Add up over ranks what each has of the sums of squares of spread parameters."""
        if all(group.get("clip_grad_norm") is None for group in self.groups):
            return
        shards, ranks = self._known_spread()
        if ranks is None:
            return
        here = [(shard, self.parts[shard.owner]) for shard in shards if shard.owner in self.parts]
        values = [squares for _, (_, squares) in here]
        (sums,) = ranks.summed([[([shard.number for shard, _ in here], values)]] if here else [[]])
        present, groups = ranks.present().tolist(), self._groups_of_params()
        for shard in shards:
            if present[shard.number]:
                self.add(groups[shard.owner], float(sums[shard.number]))

    def _known_spread(self) -> tuple[list[Shard], RankSums | None]:
        """Return the parameters that are spread over ranks, and what adds up over these."""
        params = tuple(param for group in self.groups for param in group["params"])
        known = self._spread
        if known is None or len(known[0]) != len(params) or not all(map(is_, known[0], params)):
            shards = [shard for shard in shards_of(params).values() if shard.groups]
            known = self._spread = params, shards, RankSums(shards, 1) if shards else None
        return known[1], known[2]

    def _groups_of_params(self) -> dict[Tensor, int]:
        return {param: i for i, group in enumerate(self.groups) for param in group["params"]}
