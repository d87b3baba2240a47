"""What was measured: a row has the raw readings of every contender, and what follows from them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

OURS = "ours"
TORCH = ("default", "loop", "foreach", "fused")


@dataclass(frozen=True)
class Row:
    """One optimizer in one case.

    Attributes:
        case: the set of parameters, or what was done with them.
        optimizer: the label of the subject.
        readings: by contender: `ours`, torch's modes, peers; in the table's unit.
        facts: further figures of this row, by name.
        others: readings that belong to no contender, as of the memory's speed.
    """

    case: str
    optimizer: str
    readings: Mapping[str, Sequence[float]]
    facts: Mapping[str, float] = field(default_factory=dict)
    others: Mapping[str, Sequence[float]] = field(default_factory=dict)

    def median(self, contender: str = OURS) -> float:
        """Return a contender's median."""
        return statistics.median(self.readings[contender])

    @property
    def best(self) -> str | None:
        """The mode of torch with the lowest median; None where torch takes no part."""
        modes = [name for name in TORCH if name in self.readings]
        return min(modes, key=self.median, default=None)

    @property
    def ratio(self) -> float | None:
        """The median of torch's best mode over ours: above 1, ours is faster."""
        return None if self.best is None else self.ratio_to(self.best)

    def ratio_to(self, contender: str) -> float | None:
        """Return the median of a contender over ours; None where ours is 0."""
        return self.median(contender) / self.median() if self.median() else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain data, raw readings included."""
        return {
            "case": self.case,
            "optimizer": self.optimizer,
            "contenders": {
                name: {
                    "minimum": min(values),
                    "median": statistics.median(values),
                    "maximum": max(values),
                    "readings": list(values),
                }
                for name, values in self.readings.items()
            },
            "best_of_torch": self.best,
            "ratio": self.ratio,
            "facts": dict(self.facts),
            "other_readings": {name: list(values) for name, values in self.others.items()},
        }
