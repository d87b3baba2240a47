"""What :meth:`steprule.Optimizer.explain` returns: who updates what, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steprule.optimizer.param_groups import label_of
from steprule.planning.plan import Seat


@dataclass(frozen=True)
class Row:
    """One parameter: its label, shape, dtype, engine, and why it fell back (or "")."""

    label: str
    shape: tuple[int, ...]
    dtype: str
    engine: str
    reason: str


@dataclass(frozen=True)
class Explanation:
    """A row for each parameter, in the order of the groups; ``str()`` is a table."""

    rows: tuple[Row, ...]

    def __str__(self) -> str:
        header = ("parameter", "shape", "dtype", "engine", "reason")
        cells = [
            (r.label, "x".join(map(str, r.shape)) or "scalar", r.dtype, r.engine, r.reason)
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        return "\n".join(
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, *cells)
        )


def explanation_of(seats: Sequence[Seat], groups: Sequence[Mapping[str, Any]]) -> Explanation:
    """The table of an optimizer's seats."""
    ordered = sorted(seats, key=lambda seat: (seat.group, seat.position))
    return Explanation(
        tuple(
            Row(
                label=label_of(groups[seat.group], seat.group, seat.position).strip("'"),
                shape=tuple(seat.param.shape),
                dtype=str(seat.param.dtype).removeprefix("torch."),
                engine=seat.engine,
                reason=seat.reason,
            )
            for seat in ordered
        )
    )
