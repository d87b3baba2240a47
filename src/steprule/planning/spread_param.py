"""A parameter that is spread over ranks, as a rule with sums knows it."""

from __future__ import annotations

from dataclasses import dataclass

from steprule.distributed.shards import Shard
from steprule.language.form import Form
from steprule.language.recording import Operation


@dataclass(frozen=True)
class SpreadParam:
    """A parameter that is spread over ranks, by a rule with sums: with or without a gradient here.

    Attributes:
        shard: what is here.
        group: its group.
        elements: how many real numbers it has, in all ranks.
        form: what it is updated by.
        label: how messages name it.
        levels: the sums that the form shares with others, by level.
    """

    shard: Shard
    group: int
    elements: int
    form: Form
    label: str
    levels: tuple[tuple[Operation, ...], ...]

    def at(self, level: int) -> tuple[Operation, ...]:
        """Return the sums of a level; none where there is no such level."""
        return self.levels[level] if level < len(self.levels) else ()

    @property
    def number(self) -> int:
        """Which it is among the optimizer's sharded parameters."""
        return self.shard.number
