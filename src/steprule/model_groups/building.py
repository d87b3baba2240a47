"""``build_optimizer``: one optimizer of groups that say what updates them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import Unpack

from steprule.model_groups.grouping import LR_FACTOR, optimizer_class, scaled
from steprule.optimizer import Optimizer, SharedOptions
from steprule.optimizer.combined import combine
from steprule.optimizer.options import suggestion
from steprule.optimizer.param_groups import listed_groups
from steprule.planning.settings import KIND


def build_optimizer(
    groups: Sequence[Mapping[str, Any]],
    default: str | type[Optimizer] = "adamw",
    options: Mapping[str, Mapping[str, Any]] | None = None,
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
        options: arguments of each optimizer by its name. ``lr`` and ``weight_decay`` take the
            place of what its groups have, but for what sets them apart: the lr is multiplied by
            a group's ``"lr_factor"``, and a weight decay of 0 stays 0. Other options are defaults.
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
            cls = optimizer_class(f"group {index}: {KIND!r}", name)
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
    for name in options:
        if str(name).lower() not in names:
            raise ValueError(
                f"options: no group is updated by {name!r}{suggestion(str(name).lower(), names)}; "
                f"the groups' optimizers are {', '.join(names)}"
            )
    return {names[name.lower()]: dict(given) for name, given in options.items()}


def _with_options(group: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a group with its optimizer's lr and weight decay, set apart as it was."""
    made = dict(group)
    if "lr" in given:
        made["lr"] = scaled(given["lr"], group.get(LR_FACTOR, 1.0))
    decay = group.get("weight_decay")
    if "weight_decay" in given and not (isinstance(decay, (int, float)) and decay == 0):
        made["weight_decay"] = given["weight_decay"]
    return made
