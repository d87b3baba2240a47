"""How many bytes an optimizer's state takes: by slot and format, and in all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from steprule.distributed.shards import local_of
from steprule.state.storing import format_in


@dataclass(frozen=True)
class SlotBytes:
    """What one slot takes in one format.

    Attributes:
        slot: its key in the state; ``"param"`` is what is kept beside parameters.
        format: how it is stored.
        tensors: of how many parameters.
        elements: theirs together.
        bytes: of the slot, scales included.
    """

    slot: str
    format: str
    tensors: int
    elements: int
    bytes: int


@dataclass(frozen=True)
class StateBytes:
    """The bytes of an optimizer's state; ``str()`` is a table.

    Attributes:
        rows: by slot and format.
        elements: of all parameters that have state.
    """

    rows: tuple[SlotBytes, ...]
    elements: int

    @property
    def total(self) -> int:
        """All bytes."""
        return sum(row.bytes for row in self.rows)

    @property
    def per_param(self) -> float:
        """Bytes for each element of a parameter with state."""
        return self.total / max(self.elements, 1)

    def __int__(self) -> int:
        return self.total

    def __str__(self) -> str:
        header = ("slot", "format", "tensors", "bytes", "bytes a parameter")
        cells = [
            (
                r.slot,
                r.format,
                str(r.tensors),
                f"{r.bytes:,}",
                f"{r.bytes / max(r.elements, 1):.3f}",
            )
            for r in self.rows
        ]
        cells.append(("all", "", "", f"{self.total:,}", f"{self.per_param:.3f}"))
        widths = [max(map(len, column)) for column in zip(header, *cells, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ).rstrip()
            for row in (header, *cells)
        )


def state_bytes_of(state: Mapping[Any, Any]) -> StateBytes:
    """Return the bytes of an optimizer's state by slot and format."""
    found: dict[tuple[str, str], list[int]] = {}
    elements = 0
    for param, entry in state.items():
        if not isinstance(entry, Mapping) or not isinstance(param, Tensor):
            continue
        elements += local_of(param).numel()
        slots: dict[tuple[str, str], int] = {}
        for key, value in entry.items():
            slot = str(key).partition(":")[0]
            row = slot, _format_name(slot, entry)
            slots[row] = slots.get(row, 0) + _bytes_of(value)
        for row, count in slots.items():
            kept = found.setdefault(row, [0, 0, 0])
            for i, more in enumerate((1, local_of(param).numel(), count)):
                kept[i] += more
    rows = (SlotBytes(*row, *numbers) for row, numbers in found.items())
    return StateBytes(tuple(rows), elements)


def _format_name(slot: str, entry: Mapping[str, Any]) -> str:
    parts = [key for key in entry if str(key).startswith(f"{slot}:")]
    if parts:
        return parts[0].partition(":")[2]
    value = entry.get(slot)
    if not isinstance(value, Tensor):
        return type(value).__name__
    try:
        return format_in(slot, entry).name
    except KeyError:
        return str(value.dtype).removeprefix("torch.")


def _bytes_of(value: Any) -> int:
    if isinstance(value, Tensor):
        return local_of(value).numel() * value.element_size()
    values: Iterable[Any] = ()
    if isinstance(value, Mapping):
        values = value.values()
    elif isinstance(value, (list, tuple)):
        values = value
    return sum(map(_bytes_of, values))
