"""How deep in a model each parameter lies, for learning rates that decay by the layer."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from steprule.model_groups.kinds import is_norm
from steprule.model_groups.named import NamedParam
from steprule.model_groups.rows import Row, check_one_behind_the_other, layer_of

LayerDepth: TypeAlias = Callable[[str], int]

# timm's mark, at the end of a matcher's answer: the group before this one.
_WITH_THE_ONE_BEFORE = 99999
# Names count where they agree with the place: what stands before the layers is no head, what stands
# behind them is no stem.
_HEAD = re.compile(r"(.*_)?heads?\d*|.*classifier.*|.*unembed.*|score|(.*_)?logits")
_END = re.compile(rf"{_HEAD.pattern}|fc\d*|.*(stem|embed).*")


@dataclass(frozen=True)
class Depths:
    """How deep parameters lie.

    Attributes:
        by_name: 0 for what comes first.
        notes: what should be looked at.
    """

    by_name: Mapping[str, int]
    notes: tuple[str, ...] = ()


def depths_of(
    model: nn.Module, params: Sequence[NamedParam], layer_depth: LayerDepth | None
) -> Depths:
    """Return the depth of each parameter.

    Args:
        model: the model.
        params: its parameters, in its order.
        layer_depth: says it for a name; None to find it.

    Raises:
        TypeError: ``layer_depth`` returned no whole number.
        ValueError: a number below 0; no layers were found, or rows of them that may lie side by
            side.
    """
    if layer_depth is not None:
        return Depths({one.name: _checked(layer_depth(one.name), one.name) for one in params})
    matcher = getattr(model, "group_matcher", None)
    if callable(matcher):
        return Depths(_by_matcher(matcher(coarse=False), [one.name for one in params]))
    return _by_numbers(model, params)


def _checked(depth: Any, name: str) -> int:
    try:
        whole = -1 if isinstance(depth, bool) else operator.index(depth)
    except TypeError:
        whole = None
    if whole is None or isinstance(depth, bool):
        raise TypeError(
            f"layer_depth must return a whole number, 0 for the first layer, got {depth!r} for "
            f"{name!r}"
        )
    if whole < 0:
        raise ValueError(f"layer_depth must return 0 or more, got {depth} for {name!r}")
    return whole


def _by_matcher(matcher: Any, names: Sequence[str]) -> dict[str, int]:
    """Return depths as timm takes them from a model's ``group_matcher``.

    It is a function of the name, or has regular expressions by kind of layer, in their order:
    numbers that one captures count within its kind; what none matches is last.
    """
    places = {name: _place_of(name, matcher) for name in names}
    depth, depths = -1, {}
    for place in sorted(set(places.values())):
        if depth < 0 or place[-1] != _WITH_THE_ONE_BEFORE:
            depth += 1
        depths[place] = depth
    return {name: depths[place] for name, place in places.items()}


def _place_of(name: str, matcher: Any) -> tuple[float, ...]:
    if not isinstance(matcher, Mapping):
        place = matcher(name)
        return tuple(place) if isinstance(place, Sequence) else (place,)
    for order, given in enumerate(matcher.values()):
        one_of = given if isinstance(given, (list, tuple)) else [(given, None)]
        for expression, suffix in one_of if given is not None else ():
            found = re.match(expression, name)
            if found:
                numbers = [float(number) for number in found.groups() if number is not None]
                return (float(order), *numbers, *map(float, suffix or ()))
    return (float("inf"),)


def _by_numbers(model: nn.Module, params: Sequence[NamedParam]) -> Depths:
    """Return depths by the numbered layers: 1, 2, …; 0 before them, one more behind them."""
    depth_of_layer, rows = _numbered(params)
    if not rows:
        raise ValueError(
            f"layer_decay: {type(model).__name__} has no numbered layers (blocks.0, layers.11, "
            "encoder.layer.3): pass layer_depth, a function from a parameter's name to its depth"
        )
    count = max(depth_of_layer.values())
    first, last = min(row.first for row in rows), max(row.last for row in rows)
    outside: dict[int, str] = {}
    depths, seen = {}, 0
    for index, one in enumerate(params):
        layer, before, _ = layer_of(one)
        if layer in depth_of_layer:
            depth = seen = depth_of_layer[layer]
        else:
            outside[index] = one.name
            if one.is_table or index < first:
                depth = 0
            elif index > last or _is_of(_HEAD, before):
                depth = count + 1
            else:
                depth = seen
        depths[one.name] = depth
    rows = [row for row in rows if row.layers]
    check_one_behind_the_other(model, rows, outside)
    names = [row.name for row in rows]
    are_stages = len({re.sub(r"\d+", "", name) for name in names}) == 1
    chained = f"rows of layers counted one after the other: {', '.join(names)}"
    return Depths(depths, () if are_stages else (chained,))


def _numbered(params: Sequence[NamedParam]) -> tuple[dict[str, int], list[Row]]:
    """Return the depth of each numbered layer, and the rows that they are in."""
    depths: dict[str, int] = {}
    rows: dict[str, Row] = {}
    axes: dict[str | None, int] = {}
    for one in params:
        layer = layer_of(one)[0]
        axes[layer] = max(axes.get(layer, 0), one.param.ndim)
    count = 0
    for index, one in enumerate(params):
        layer, before, module = layer_of(one)
        if layer is None or module is None or _is_of(_END, before):
            continue
        row = rows.setdefault(".".join(before), Row(".".join(before), index, index))
        row.last = index
        if layer not in depths:
            # A normalisation in a row of layers belongs to the one that it follows.
            is_own = not count or axes[layer] > 1 or not is_norm(module)
            count += is_own
            depths[layer] = count
            row.layers += [layer] * is_own
    return depths, [*rows.values()]


def _is_of(words: re.Pattern[str], parts: Sequence[str]) -> bool:
    return any(words.fullmatch(part.lower()) for part in parts)
