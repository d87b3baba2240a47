"""What :func:`steprule.param_groups` returns: groups that print as a table."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence, Sized
from typing import Any, SupportsIndex, overload

from torch import Tensor

#: The key under which a group says what its lr was multiplied by.
LR_FACTOR = "lr_factor"
#: The key under which a group says whether weight decay is for it.
DECAYS = "decays"

_LISTED = ("params", "param_names", "name", DECAYS)
_WIDTH = 100
# Of the name of a group: what is before its depth, the depth, and what is behind.
_LAYER = re.compile(r"((?:.*\.)?layer_)(\d+)(.*)")
_FEWEST = 3


class ParamGroups(list[dict[str, Any]]):
    """Parameter groups for any optimizer; ``str()`` is a table of what went where.

    Slices, sums and copies are such lists, too.

    Attributes:
        frozen: the parameters that take no gradient and are in no group, by name.
        tied: other names that parameters have, each with the name that they go by.
        classes: the optimizers that groups name under ``"optimizer"``.
        notes: what should be looked at.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]] = (),
        frozen: Mapping[str, Tensor] | None = None,
        tied: Mapping[str, str] | None = None,
        classes: Mapping[str, type] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        super().__init__(groups)
        self.frozen = dict(frozen or {})
        self.tied = dict(tied or {})
        self.classes = dict(classes or {})
        self.notes = list(notes)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Show the table in IPython and notebooks, where a list would show every weight."""
        printer.text(str(self))

    @overload
    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> ParamGroups: ...

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        found: Any = super().__getitem__(index)
        return self._with(found) if isinstance(index, slice) else found

    def copy(self) -> ParamGroups:
        """Return a list of the same groups."""
        return self._with(self)

    def __add__(self, other: Iterable[Any]) -> ParamGroups:  # type: ignore[override]
        """Return the groups of both, with what is known of either.

        Raises:
            ValueError: they know two optimizers of one name.
        """
        made = self._with([*self, *other])
        if isinstance(other, ParamGroups):
            for name, cls in other.classes.items():
                if made.classes.setdefault(name, cls) is not cls:
                    raise ValueError(
                        f"groups: two different classes are named {name!r}, which is how groups "
                        "say what updates them: rename one"
                    )
            made.frozen |= other.frozen
            made.tied |= other.tied
            made.notes += other.notes
        return made

    def _with(self, groups: Iterable[dict[str, Any]]) -> ParamGroups:
        return ParamGroups(groups, self.frozen, self.tied, self.classes, self.notes)

    def __str__(self) -> str:
        options = dict.fromkeys(k for group in self for k in group if k not in _LISTED)
        header = ["group", "name", *options, "tensors", "elements"]
        rows = _rows(self)
        cells = [header, *(_cells(self, row, list(options)) for row in rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        counts = len(header) - 2
        lines = []
        for texts, row in zip(cells, [[], *rows], strict=True):
            padded = [
                cell.ljust(width) if i < counts else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(texts, widths, strict=True))
            ]
            lines.append("  ".join(padded).rstrip())
            names = [name for index in row for name in self[index].get("param_names", ())]
            if row:
                lines += _wrapped(", ".join(shortened(names)), " " * 7)
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
        for note in self.notes:
            notes += _wrapped(f"note: {note}", " " * 7)
        return [*notes, *(f"tied: {other} is {name}" for other, name in self.tied.items())]


def _rows(groups: Sequence[Mapping[str, Any]]) -> list[list[int]]:
    """Return the groups of each row by index: three or more that differ by depth alone are one."""
    alike: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        rest = {k: v for k, v in group.items() if k not in (*_LISTED, "lr", LR_FACTOR)}
        names = [_unnumbered(name) for name in group.get("param_names", ())]
        layer = _LAYER.match(str(group.get("name", "")))
        # A group without a depth is like no other.
        mark = (layer[1], layer[3]) if layer else index
        key = mark, repr(rest), tuple(names), tuple(param.numel() for param in group["params"])
        alike.setdefault(key, []).append(index)
    rows = [row for row in alike.values() if len(row) >= _FEWEST]
    rows += [[index] for row in alike.values() if len(row) < _FEWEST for index in row]
    return sorted(rows)


def _cells(groups: Sequence[Mapping[str, Any]], row: list[int], options: list[str]) -> list[str]:
    first, last = groups[row[0]], groups[row[-1]]
    name, index = str(first.get("name", "")), str(row[0])
    if len(row) > 1:
        layers = [_LAYER.match(str(groups[i]["name"])) for i in row]
        numbers = _numbers([layer[2] for layer in layers if layer])
        name = _LAYER.sub(rf"\1{{{numbers}}}\3", name)
        between = "," if len(row) == _FEWEST else ".."
        index = f"{row[0]},{row[1]}{between}{row[-1]}"
    ends = [
        [_text(group[key]) if key in group else "" for group in (first, last)] for key in options
    ]
    said = ["..".join(dict.fromkeys(texts)) for texts in ends]
    sizes = [param.numel() for i in row for param in groups[i]["params"]]
    return [index, name, *said, str(len(sizes)), f"{sum(sizes):,}"]


def _unnumbered(name: str) -> str:
    return ".".join("" if part.isdigit() else part for part in name.split("."))


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
        initial_indent=indent if not text.startswith(("frozen: ", "note: ")) else "",
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
