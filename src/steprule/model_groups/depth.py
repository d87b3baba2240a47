"""How deep in a model each parameter lies, for learning rates that decay by the layer."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import nn

from steprule.model_groups.kinds import is_norm
from steprule.model_groups.named import NamedParam

LayerDepth: TypeAlias = Callable[[str], int]

# timm's mark, at the end of a matcher's answer: the group before this one.
_WITH_THE_ONE_BEFORE = 99999
_ENDS_IN_NUMBER = re.compile(r".*\d")
_HEAD = re.compile(r"(.*_)?heads?\d*|.*classifier.*|fc\d*|.*unembed.*|score|(.*_)?logits")
_STEM = re.compile(r".*(stem|embed).*|wte|wpe|cls_token|(.*_)?pos(_.*)?")


def depths_of(
    model: nn.Module, params: Sequence[NamedParam], layer_depth: LayerDepth | None
) -> dict[str, int]:
    """Return the depth of each parameter by its name: 0 for what comes first.

    Args:
        model: the model.
        params: its parameters, in its order.
        layer_depth: says it for a name; None to find it.

    Raises:
        TypeError: ``layer_depth`` returned no whole number.
        ValueError: a number below 0; or no layers were found.
    """
    if layer_depth is not None:
        return {one.name: _checked(layer_depth(one.name), one.name) for one in params}
    matcher = getattr(model, "group_matcher", None)
    if callable(matcher):
        return _by_matcher(matcher(coarse=False), [one.name for one in params])
    return _by_numbers(model, params)


def _checked(depth: Any, name: str) -> int:
    if isinstance(depth, bool) or not isinstance(depth, int):
        raise TypeError(
            f"layer_depth must return a whole number, 0 for the first layer, got {depth!r} for "
            f"{name!r}"
        )
    if depth < 0:
        raise ValueError(f"layer_depth must return 0 or more, got {depth} for {name!r}")
    return depth


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


def _by_numbers(model: nn.Module, params: Sequence[NamedParam]) -> dict[str, int]:
    """Return depths by the numbered layers: 1, 2, …; 0 before them, one more behind them."""
    layers: dict[str, int] = {}
    count, first, last = 0, None, -1
    for index, one in enumerate(params):
        layer, before = _layer_of(model, one.name)
        if layer is None or _is_of(_HEAD, before) or _is_of(_STEM, before):
            continue
        first, last = index if first is None else first, index
        if layer not in layers:
            # A normalisation in a row of layers belongs to the one that it follows.
            count += not (count and is_norm(model.get_submodule(layer)))
            layers[layer] = count
    if first is None:
        raise ValueError(
            f"layer_decay: {type(model).__name__} has no numbered layers (blocks.0, layers.11, "
            "encoder.layer.3): pass layer_depth, a function from a parameter's name to its depth"
        )
    depths, seen = {}, 0
    for index, one in enumerate(params):
        layer, before = _layer_of(model, one.name)
        if _is_of(_HEAD, before):
            depth = count + 1
        elif _is_of(_STEM, before):
            depth = 0
        elif layer is not None:
            depth = seen = layers[layer]
        elif isinstance(one.owner, (nn.Embedding, nn.EmbeddingBag)) or index < first:
            depth = 0
        else:
            depth = count + 1 if index > last else seen
        depths[one.name] = depth
    return depths


def _layer_of(model: nn.Module, name: str) -> tuple[str | None, list[str]]:
    """Return the outermost numbered module that a parameter is in, and the names around it."""
    parts = name.split(".")
    module: Any = model
    for index, part in enumerate(parts[:-1]):
        is_row = isinstance(module, (nn.ModuleList, nn.Sequential, nn.ModuleDict))
        if part.isdigit() or (is_row and _ENDS_IN_NUMBER.fullmatch(part)):
            return ".".join(parts[: index + 1]), parts[:index]
        module = getattr(module, part)
    return None, parts


def _is_of(words: re.Pattern[str], parts: Sequence[str]) -> bool:
    return any(words.fullmatch(part.lower()) for part in parts)
