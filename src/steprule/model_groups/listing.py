"""What :func:`steprule.param_groups` returns: groups that print as a table."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any

from torch import Tensor

_LISTED = ("params", "param_names", "name")
_WIDTH = 100


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups for any optimizer; ``str()`` is a table of what went where.

    Attributes:
        frozen: the parameters that take no gradient and are in no group, by name.
        tied: other names that parameters have, each with the name that they go by.
        classes: the optimizers that groups name under ``"optimizer"``.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]] = (),
        frozen: Mapping[str, Tensor] | None = None,
        tied: Mapping[str, str] | None = None,
        classes: Mapping[str, type] | None = None,
    ) -> None:
        super().__init__(groups)
        self.frozen = dict(frozen or {})
        self.tied = dict(tied or {})
        self.classes = dict(classes or {})

    def __str__(self) -> str:
        options = dict.fromkeys(k for group in self for k in group if k not in _LISTED)
        header = ["group", "name", *options, "tensors", "elements"]
        cells = [header]
        for index, group in enumerate(self):
            sizes = [param.numel() for param in group["params"]]
            said = [_text(group[key]) if key in group else "" for key in options]
            name = str(group.get("name", ""))
            cells.append([str(index), name, *said, str(len(sizes)), f"{sum(sizes):,}"])
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        counts = len(header) - 2
        lines = []
        for row, group in zip(cells, [None, *self], strict=True):
            padded = [
                cell.ljust(width) if i < counts else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
            if group is not None:
                lines += _wrapped(", ".join(shortened(group.get("param_names", ()))), " " * 7)
        return "\n".join([*lines, *self._notes()])

    def _notes(self) -> list[str]:
        params = [param for group in self for param in group["params"]]
        total = sum(param.numel() for param in params)
        notes = [f"{_count(self, 'group')}, {_count(params, 'tensor')}, {total:,} elements"]
        if self.frozen:
            count = sum(param.numel() for param in self.frozen.values())
            names = ", ".join(shortened(list(self.frozen)))
            text = f"frozen: {_count(self.frozen, 'tensor')}, {count:,} elements: {names}"
            notes += _wrapped(text, " " * 7)
        return [*notes, *(f"tied: {other} is {name}" for other, name in self.tied.items())]


def shortened(names: Sequence[str]) -> list[str]:
    """Return names with those that differ by numbers alone as one: ``blocks.{0-11}.weight``."""
    alike: dict[tuple[str | None, ...], list[list[str]]] = {}
    for name in names:
        parts = name.split(".")
        key = tuple(None if part.isdigit() else part for part in parts)
        alike.setdefault(key, []).append(parts)
    return [text for several in alike.values() for text in _as_one(several)]


def _as_one(several: list[list[str]]) -> list[str]:
    columns = [list(dict.fromkeys(column)) for column in zip(*several, strict=True)]
    size = 1
    for column in columns:
        size *= len(column)
    if size != len(several):  # not each number with each other
        return [".".join(parts) for parts in several]
    return [".".join(c[0] if len(c) == 1 else f"{{{_numbers(c)}}}" for c in columns)]


def _numbers(column: Sequence[str]) -> str:
    numbers = [int(part) for part in column]
    if len(numbers) > 2 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"{numbers[0]}-{numbers[-1]}"
    return ",".join(column)


def _count(things: Sized, word: str) -> str:
    return f"{len(things)} {word}{'' if len(things) == 1 else 's'}"


def _text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=indent if not text.startswith("frozen") else "",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
