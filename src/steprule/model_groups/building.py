"""``build_optimizer``: one optimizer of groups that say what updates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from steprule.model_groups.grouping import scaled
from steprule.model_groups.listing import DECAYS, LR_FACTOR
from steprule.model_groups.updaters import optimizer_class
from steprule.optimizer import Optimizer, SharedOptions
from steprule.optimizer.combined import combine
from steprule.optimizer.options import suggestion
from steprule.optimizer.param_groups import listed_groups
from steprule.planning.settings import KIND

# Arguments that are no options of one optimizer among several, and where they are given.
_ELSEWHERE = {
    "params": "groups have them",
    "engine": "pass build_optimizer(..., engine=), which is of all",
}


def build_optimizer(
    groups: Sequence[Mapping[str, Any]],
    default: str | type[Optimizer] = "adamw",
    options: Mapping[str | type[Optimizer], Mapping[str, Any]] | None = None,
    *,
    engine: str = "auto",
    **shared: Unpack[SharedOptions],
) -> Optimizer:
    """Make one optimizer of groups that say, under ``"optimizer"``, what updates them.

    ::

        groups = steprule.param_groups(model, lr=3e-4, rule={"blocks.*": "muon"})
        optimizer = steprule.build_optimizer(
            groups, "adamw", {"muon": {"lr": 0.02}, "adamw": {"betas": (0.9, 0.95)}}
        )

    Groups of several optimizers make a :func:`steprule.combine`, groups of one alone that one.

    Args:
        groups: of :func:`steprule.param_groups`, or any list of group dicts; they are copied.
        default: what updates groups that name nothing: a name as in ``steprule list``, or a class
            (default ``"adamw"``).
        options: arguments of each optimizer by its name or class. ``lr`` and ``weight_decay`` take
            the place of what its groups have, but for what sets them apart: the lr is multiplied by
            a group's ``"lr_factor"``, and no weight decay is given to groups that say
            ``"decays": False`` (of those written by hand, that have 0). Other options are defaults,
            for what groups do not say themselves.
        engine: of all, as of any optimizer.
        **shared: options of all, guards for one (:class:`~steprule.optimizer.SharedOptions`).

    Raises:
        TypeError: no groups, no optimizer, or an argument that an optimizer does not take.
        ValueError: an unknown name; options for an optimizer that no group has; what
            :func:`steprule.combine` and the optimizers refuse.
    """
    listed = listed_groups(groups)
    if not all("params" in group for group in listed) or not isinstance(groups, Sequence):
        raise TypeError("groups must be a list of parameter groups: take param_groups(model)")
    known = getattr(groups, "classes", {})
    first = optimizer_class("default", default)
    parts: dict[type[Optimizer], list[dict[str, Any]]] = {}
    for index, group in enumerate(listed):
        name = group.pop(KIND, None)
        cls = first if name is None else known.get(name)
        if cls is None:
            cls = _class_named(name, index)
        parts.setdefault(cls, []).append(group)
    by_class = _by_class(options, parts)
    made = []
    for cls, own in parts.items():
        given = by_class.get(cls, {})
        make: Any = cls
        of_cls = [_with_options(group, given) for group in own]
        made.append(make(of_cls, **{**shared, **given}, engine=engine))
    return made[0] if len(made) == 1 else combine(*made)


def _by_class(
    options: Any, parts: Mapping[type[Optimizer], Any]
) -> dict[type[Optimizer], dict[str, Any]]:
    """Return the options of each optimizer among the groups."""
    if options is None:
        return {}
    is_dict = isinstance(options, Mapping)
    if not is_dict or not all(isinstance(given, Mapping) for given in options.values()):
        raise TypeError(
            f"options must be a dict of dicts, as {{'muon': {{'lr': 0.02}}}}, got {options!r}"
        )
    names = {cls.__name__.lower(): cls for cls in parts}
    found: dict[type[Optimizer], dict[str, Any]] = {}
    for name, given in options.items():
        cls = name if name in parts else names.get(str(name).lower())
        if cls is None:
            shown = name.__name__ if isinstance(name, type) else name
            raise ValueError(
                f"options: no group is updated by {shown!r}{suggestion(str(shown).lower(), names)};"
                f" the groups' optimizers are {', '.join(names)}"
            )
        for key, where in _ELSEWHERE.items():
            if key in given:
                raise TypeError(f"options[{name!r}]: {key} is no option of one optimizer: {where}")
        found[cls] = {**found.get(cls, {}), **given}
    return found


def _class_named(name: Any, index: int) -> type[Optimizer]:
    where = f"group {index}: {KIND!r}"
    try:
        return optimizer_class(where, name)
    except ValueError as error:
        raise ValueError(
            f"{error}. A class of your own is known by the list that param_groups returned, its "
            "slices and sums: pass that, or the class under 'optimizer'"
        ) from None


def _with_options(group: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with its optimizer's lr and weight decay, set apart as it was."""
    made = dict(group)
    if "lr" in given:
        made["lr"] = scaled(given["lr"], group.get(LR_FACTOR, 1.0))
    decay = group.get("weight_decay")
    is_zero = isinstance(decay, (int, float)) and decay == 0
    if "weight_decay" in given and group.get(DECAYS, not is_zero):
        made["weight_decay"] = given["weight_decay"]
    return made
