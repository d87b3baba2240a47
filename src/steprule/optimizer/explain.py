"""What :meth:`steprule.Optimizer.explain` returns: who updates what, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from steprule.engines.native.switch import why_off
from steprule.language.form import form_of
from steprule.language.passes import described
from steprule.language.rule import Rule
from steprule.planning.assignment import Assignment
from steprule.state.labels import label_of


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
    """A row for each parameter, in the order of the groups; ``str()`` is a table.

    Attributes:
        rows: the parameters.
        notes: how often a rule with reductions reads the elements, and what else makes steps
            slower than they could be here.
    """

    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        header = ("parameter", "shape", "dtype", "engine", "reason")
        cells = [
            (r.label, "x".join(map(str, r.shape)) or "scalar", r.dtype, r.engine, r.reason)
            for r in self.rows
        ]
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        table = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in (header, *cells)
        ]
        return "\n".join([*table, *self.notes])


def explanation_of(
    assignments: Sequence[Assignment],
    groups: Sequence[Mapping[str, Any]],
    notes: Sequence[str] = (),
) -> Explanation:
    """Return the table of an optimizer's assignments, with some notes."""
    ordered = sorted(assignments, key=lambda a: (a.group, a.position))
    rows = tuple(
        Row(
            label=label_of(groups[a.group], a.group, a.position).strip("'"),
            shape=tuple(a.param.shape),
            dtype=str(a.param.dtype).removeprefix("torch."),
            engine=a.engine,
            reason=a.reason,
        )
        for a in ordered
    )
    reason = why_off()
    off = [] if reason is None else [f"the native loops are off: {reason}"]
    return Explanation(rows, (*notes, *off))


def pass_notes(groups: Sequence[tuple[Rule, Mapping[str, Any]]]) -> list[str]:
    """Return in words how often groups' rules read a parameter's elements, if more than once."""
    notes = []
    for rule, options in groups:
        if not rule.is_recorded:
            continue
        form = form_of(rule, options)
        for of_shape in dict.fromkeys(form.of_shape(p.shape) for p in options["params"]):
            recording = of_shape.recording()
            if recording.has_reductions or recording.matrix_operations:
                notes.append(f"the rule {rule.name!r} takes {described(recording)}")
    return list(dict.fromkeys(notes))
