"""Rows of numbered layers, and whether they lie one behind the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from steprule.model_groups.named import NamedParam

_ENDS_IN_NUMBER = re.compile(r".*\d")


@dataclass
class Row:
    """A row of numbered layers: ``blocks`` of ``blocks.0``, ``blocks.1``…

    Attributes:
        name: what stands before the numbers.
        first: which of the model's parameters is its first.
        last: which was seen last.
        layers: the names of its layers.
    """

    name: str
    first: int
    last: int
    layers: list[str] = field(default_factory=list)


def layer_of(one: NamedParam) -> tuple[str | None, list[str], nn.Module | None]:
    """Return the outermost numbered module that a parameter is in: its name, that of what it is in.

    Returns:
        Name, names around it, module; or None, all parts of the parameter's name, None.
    """
    parts = one.name.split(".")
    for index, part in enumerate(parts[:-1]):
        is_row = isinstance(one.path[index], (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        if part.isdigit() or (is_row and _ENDS_IN_NUMBER.fullmatch(part)):
            return ".".join(parts[: index + 1]), parts[:index], one.path[index + 1]
    return None, parts, None


def check_one_behind_the_other(
    model: nn.Module, rows: Sequence[Row], outside: Mapping[int, str]
) -> None:
    """Refuse rows that may lie side by side, whose layers have no order that could be seen.

    Those are two of as many layers in one module, as stages whose halves are kept apart; two that
    are called alike in different modules, as towers; and two that begin, each in a module of its
    own, with something of that module's before the first layer. An encoder and a decoder follow
    each other, and so do stages whose names differ by a number.

    Args:
        model: the model.
        rows: in its order.
        outside: what is in no row: names of parameters by their place in the model.

    Raises:
        ValueError: naming two rows.
    """
    for index, one in enumerate(rows):
        for other in rows[index + 1 :]:
            mine, theirs = _parted(one.name), _parted(other.name)
            depth = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
            parts = mine[depth], theirs[depth]
            if sum("decoder" in part.lower() for part in parts) == 1:
                continue
            are_inside = min(len(mine), len(theirs)) > depth + 2
            are_siblings = max(len(mine), len(theirs)) == depth + 2
            are_as_many = len(one.layers) == len(other.layers) > 1
            is_alike = are_as_many if are_siblings else mine[-2] == theirs[-2]
            is_alike &= _unnumbered(parts[0]) != _unnumbered(parts[1])
            is_towers = are_inside and all(
                any(
                    place < row.first and name.split(".")[: depth + 1] == of[: depth + 1]
                    for place, name in outside.items()
                )
                for row, of in ((one, mine), (other, theirs))
            )
            if is_alike or is_towers:
                raise ValueError(
                    f"layer_decay: {type(model).__name__} has two rows of layers, {one.name!r} and "
                    f"{other.name!r}, that may lie side by side: pass layer_depth, a function from "
                    "a parameter's name to its depth"
                )


def _parted(name: str) -> list[str]:
    return [*name.split("."), ""]  # the end differs from whatever goes on


def _unnumbered(part: str) -> str:
    return re.sub(r"\d+", "", part)
