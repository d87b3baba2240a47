"""What a run measures, as every table is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from steprule.bench.peers import Peer
from steprule.bench.sets import ParamSet
from steprule.bench.subjects import Subject


@dataclass(frozen=True)
class Settings:
    """The checked request.

    Attributes:
        subjects: every optimizer asked for, or all.
        few: those for tables whose figures hardly depend on the rule.
        sets: the sets of parameters.
        rounds: readings of each contender.
        threads: torch's, and so ours.
        peers: who else takes part where it can.
        notes: what is to be said beside the figures; tables add to it.
        broken: peers that failed, with the case they failed in, so as not to try again.
    """

    subjects: Sequence[Subject]
    few: Sequence[Subject]
    sets: Sequence[ParamSet]
    rounds: int
    threads: int
    peers: Sequence[Peer] = ()
    notes: list[str] = field(default_factory=list)
    broken: set[tuple[str, ...]] = field(default_factory=set)

    def say(self, note: str) -> None:
        """Add a note, once."""
        if note not in self.notes:
            self.notes.append(note)
