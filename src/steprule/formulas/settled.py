"""Which forms are asked for: options put in, and refused as an optimizer refuses them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch

from steprule.formats.choices import AVERAGING
from steprule.language.caution import CAUTION, check_caution
from steprule.language.decay import DECAYING, check_decay, check_kind_of_decay
from steprule.language.form import Form, form_of
from steprule.language.guards import GUARDS, check_guards, guards_of
from steprule.language.rule import Rule
from steprule.optimizer import Optimizer
from steprule.optimizer.combined import Combined
from steprule.optimizer.options import check_options, suggestion
from steprule.optimizer.scheduled import SCHEDULES, STEP, split_schedules, steps_seen
from steprule.planning.schedule_keys import option_of, put
from steprule.planning.settings import KIND, Kind

# What an option has whose value is not known: a symbol, which stays where a 0 would drop out.
_UNKNOWN = "unknown"
# What stands in a group and is no option.
_OF_GROUPS = ("params", "param_names", SCHEDULES, STEP, KIND)
# Options that change the formula of any rule, with their defaults.
_OF_ALL: Mapping[str, Any] = {
    "weight_decay": 0.0,
    "maximize": False,
    **DECAYING,
    **CAUTION,
    **GUARDS,
    **AVERAGING,
}


def forms_of_groups(
    optimizer: torch.optim.Optimizer, options: Mapping[str, Any]
) -> list[tuple[Form, Mapping[str, Any]]]:
    """Return the form of each group, and its options, with others in the place of its own.

    Where several classes update the groups, an option is of those groups whose class has it.

    Raises:
        TypeError: an option that none of them has, or of the wrong kind.
        ValueError: one out of its range, or an optimizer without a rule.
    """
    known = [_options_of(optimizer, group) for group in optimizer.param_groups]
    unknown = sorted(set(options).difference(*known))
    if unknown and known:
        _refuse(type(optimizer).__name__, unknown, set().union(*known))
    found: list[tuple[Form, Mapping[str, Any]]] = []
    for index, (group, names) in enumerate(zip(optimizer.param_groups, known, strict=True)):
        assert isinstance(optimizer, Optimizer)
        taken = {name: value for name, value in options.items() if name in names}
        if taken:
            kept = {k: v for k, v in group.items() if k not in ("params", "param_names")}
            if SCHEDULES in kept:
                kept[SCHEDULES] = {
                    k: s for k, s in kept[SCHEDULES].items() if option_of(k) not in taken
                }
            steps = steps_seen(optimizer.param_groups)
            group = optimizer._new_group({**kept, **taken, "params": []}, f"group {index}: ", steps)
        kind = optimizer._kind_of(group)
        assert kind is not None
        complete = _without_values(kind.options_of(group), group.get(SCHEDULES, ()))
        found.append((form_of(kind.rule, complete), complete))
    return found


def _without_values(options: Mapping[str, Any], scheduled: Collection[str]) -> dict[str, Any]:
    """Return options, those that follow a schedule as unknown: their 0 is that of one step."""
    found = dict(options)
    for key in scheduled:
        put(found, key, _UNKNOWN)
    return found


def form_of_rule(rule: Rule, options: Mapping[str, Any]) -> tuple[Form, Mapping[str, Any]]:
    """Return the form of a rule whose options are symbols, but for those that are given.

    Raises:
        TypeError, ValueError: as an optimizer class that :func:`steprule.make_optimizer` makes.
    """
    own = (*rule.options, *rule.flags)
    of_all = {**_OF_ALL, "decoupled_weight_decay": rule.decoupled}
    shared = {name: value for name, value in of_all.items() if name not in own}
    unknown = sorted(set(options) - {*own, *shared})
    if unknown:
        _refuse(f"rule {rule.name}", unknown, own, shared)
    given, schedules = split_schedules(options)
    with_shared = {**shared, **given}
    check_options(rule, with_shared)
    check_guards(guards_of(with_shared, rule.options), "")
    for check in (check_decay, check_kind_of_decay, check_caution):
        check(rule.name, rule, with_shared, "")
    unset = dict.fromkeys(rule.flags, False)
    numbers = dict.fromkeys(rule.options, _UNKNOWN)
    parts = {name: (_UNKNOWN,) * len(names) for name, names in rule.parts.items()}
    present = {slot.when: slot.when_is or True for slot in rule.slots.values() if slot.when}
    on = {name: value for name, value in present.items() if name not in rule.flags}
    known = _without_values(with_shared, schedules)
    complete = {**unset, **numbers, **parts, **on, **known}
    kind = Kind(rule.name, rule, shared).of(complete)
    return form_of(kind.rule, complete), complete


def _options_of(optimizer: Any, group: Mapping[str, Any]) -> set[str]:
    """Return the names of a group's options.

    Raises:
        ValueError: there is no rule.
    """
    if not isinstance(optimizer, Optimizer) or optimizer._kind_of(group) is None:
        is_around_another = isinstance(getattr(optimizer, "optimizer", None), torch.optim.Optimizer)
        why = (
            "which is around another optimizer: ask for that of its attribute optimizer"
            if is_around_another
            else "which has no rule: its steps are no function of one gradient and state"
            if isinstance(optimizer, Optimizer)
            else "which is no optimizer of steprule's: its rule is not recorded"
        )
        raise ValueError(f"there is no formula of {type(optimizer).__name__}, {why}")
    member = optimizer._members[group[KIND]] if isinstance(optimizer, Combined) else optimizer
    return member._known_options() - {*_OF_GROUPS}


def _refuse(
    whose: str, unknown: Collection[str], own: Collection[str], of_all: Collection[str] = ()
) -> None:
    meant = suggestion(next(iter(unknown)), [*own, *of_all])
    has = ", ".join(own if of_all else sorted(own))
    more = f", and as every rule {', '.join(of_all)}" if of_all else ""
    raise TypeError(f"{whose} has no option {', '.join(unknown)}{meant}; it has {has}{more}")
