"""Options that are schedules: their values put into the groups, step by step.

A group keeps its schedules under ``"schedules"`` (option, or ``option[i]`` for an entry of a
tuple such as betas) and the number of steps they have seen under ``"schedule_step"``; the option
itself always holds the number in force at the next step. Groups without schedules have neither
key, as in torch.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from steprule.planning.schedule_keys import option_of, put
from steprule.schedules import Schedule

SCHEDULES, STEP = "schedules", "schedule_step"


def split_schedules(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Schedule]]:
    """Options with each schedule replaced by its first value, and the schedules."""
    plain = dict(options)
    found: dict[str, Schedule] = {}
    for name, value in options.items():
        if isinstance(value, Schedule):
            found[name] = value
            plain[name] = value(0)
        elif isinstance(value, (tuple, list)) and any(isinstance(v, Schedule) for v in value):
            entries = {f"{name}[{i}]": v for i, v in enumerate(value)}
            found.update({k: v for k, v in entries.items() if isinstance(v, Schedule)})
            plain[name] = tuple(v(0) if isinstance(v, Schedule) else v for v in value)
    return plain, found


def check_schedules(group: Mapping[str, Any], where: str) -> None:
    """Check the schedules that a group came with, as one from another optimizer does.

    Raises:
        TypeError: something that is not a schedule.
        ValueError: one for no option of the group, or at no step.
    """
    problem = _problem_of(group, where) if SCHEDULES in group else None
    if problem is not None:
        raise problem


def _problem_of(group: Mapping[str, Any], where: str) -> Exception | None:
    found = group[SCHEDULES]
    if not isinstance(found, Mapping):
        return TypeError(
            f"{where}{SCHEDULES} must be a dict from options to schedules, got {found!r}: give a "
            "schedule in place of an option's number (lr=cosine(...))"
        )
    for key, schedule in found.items():
        if not isinstance(schedule, Schedule):
            return TypeError(f"{where}{SCHEDULES}[{key!r}] must be a schedule, got {schedule!r}")
        if option_of(str(key)) not in group:
            return ValueError(f"{where}{SCHEDULES} has one for {key!r}, which is no option here")
    step = group.get(STEP)
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        return ValueError(
            f"{where}{STEP} must be the number of steps that the schedules have seen, got {step!r}"
        )
    return None


def with_schedules(group: dict[str, Any], step: int) -> dict[str, Any]:
    """Return a new group whose options may be schedules, at a step of the optimizer."""
    plain, found = split_schedules(group)
    given = group.get(SCHEDULES, {})  # as a group of another optimizer has them
    if found and isinstance(given, Mapping):
        plain[SCHEDULES] = {**given, **found}
        plain.setdefault(STEP, step)
        if _problem_of(plain, "") is None:  # else it is refused with the group's other options
            apply_schedules(plain)
    return plain


def apply_schedules(group: dict[str, Any]) -> None:
    """Put into a group the values that its schedules have at its step."""
    for key, schedule in group[SCHEDULES].items():
        put(group, key, schedule(group[STEP]))


def replace_schedule(
    group: dict[str, Any], name: str, schedule: Schedule | None, step: int
) -> None:
    """Give an option of a group another schedule at this step, or (None) take its away."""
    kept = {key: other for key, other in group.get(SCHEDULES, {}).items() if key != name}
    if schedule is not None:
        kept[name] = schedule
    if kept:
        group[SCHEDULES] = kept
        group.setdefault(STEP, step)
    else:
        group.pop(SCHEDULES, None)
        group.pop(STEP, None)


def schedule_steps(groups: Iterable[Mapping[str, Any]]) -> dict[int, int]:
    """Return the step at which the schedules of each group are, by the group's id."""
    return {id(group): group[STEP] for group in groups if SCHEDULES in group}


def advance_schedules(
    groups: Iterable[dict[str, Any]], seen: Mapping[int, int] | None = None
) -> None:
    """Move the schedules of all groups on by one step.

    Args:
        groups: the groups.
        seen: the steps at which they were when the step began: a group that is further by now
            was moved on by a step inside this one (an optimizer that shares its groups).

    Raises:
        RuntimeError: the step is being captured as a CUDA graph.
    """
    for index, group in enumerate(groups):
        if SCHEDULES in group and _is_captured():
            names = ", ".join(group[SCHEDULES])
            raise RuntimeError(
                f"group {index}: {names} is a schedule, which a CUDA graph would keep at the "
                "number of the captured step: give the group a tensor instead "
                "(lr=torch.tensor(0.1, device=...)), and set it before each replay: "
                "lr.fill_(schedule(step))"
            )
        if SCHEDULES in group and (seen is None or group[STEP] == seen.get(id(group), group[STEP])):
            if "initial_lr" in group:  # which torch's schedulers leave there
                _warn_if_overridden(group, index)
            group[STEP] += 1
            apply_schedules(group)


def _warn_if_overridden(group: Mapping[str, Any], index: int) -> None:
    """Warn of a scheduler that the lr's schedule was given beside: a trainer makes one unasked."""
    schedule, lr = group[SCHEDULES].get("lr"), group["lr"]
    if schedule is not None and lr != schedule(group[STEP]):
        warnings.warn(
            f"the lr of group {index} follows {schedule!r}, but a scheduler has set it for this "
            "step, which counts. Give one of the two: the optimizer a number for lr, and the "
            "trainer, if it asks for a scheduler, "
            "steprule.lr_scheduler.from_schedule(optimizer, schedule)",
            UserWarning,
            stacklevel=2,
        )


def _is_captured() -> bool:
    """Tell whether what this thread has a card do is being captured as a graph."""
    is_in_use: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return is_in_use and torch.cuda.is_current_stream_capturing()


def steps_seen(groups: Iterable[Mapping[str, Any]]) -> int:
    """Return how many steps the schedules among ``groups`` have seen."""
    return max((group.get(STEP, 0) for group in groups), default=0)


def packed_schedules(group: dict[str, Any]) -> dict[str, Any]:
    """Return a group for a state dict: its schedules as plain types."""
    if SCHEDULES not in group:
        return group
    return {**group, SCHEDULES: {k: s.to_json() for k, s in group[SCHEDULES].items()}}


def unpacked_schedules(group: dict[str, Any], where: str) -> dict[str, Any]:
    """Return a group from a state dict, its schedules made again and in force.

    Args:
        group: the group.
        where: put before messages.

    Raises:
        TypeError, ValueError: something that is not a schedule, or at no step.
    """
    if SCHEDULES not in group:
        return group
    found = group[SCHEDULES]
    if isinstance(found, Mapping):
        found = {
            k: s if isinstance(s, Schedule) else Schedule.from_json(s) for k, s in found.items()
        }
    group = {**group, SCHEDULES: found}
    check_schedules(group, where)
    apply_schedules(group)
    return group


def names_in(keep: Any) -> list[str]:
    """Return an argument ``keep`` as a list of names.

    Raises:
        TypeError: something that is not a name.
    """
    is_several = isinstance(keep, Iterable) and not isinstance(keep, (str, bytes))
    names = list(keep) if is_several else [keep]
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"keep must be names of options, such as ('lr',), got {keep!r}")
    return names


def kept_options(
    keep: Iterable[str], groups: Iterable[Mapping[str, Any]], known: Iterable[str]
) -> frozenset[str]:
    """Return the options that loading is to leave as they are.

    Args:
        keep: their names; ``lr`` includes ``initial_lr``, which schedulers start from.
        groups: the optimizer's groups.
        known: options that groups may have.

    Raises:
        ValueError: a name that no group has.
        TypeError: something that is not a name.
    """
    names = frozenset(names_in(keep))
    there = {*known}.union(*groups) - {"params", "param_names", SCHEDULES, STEP}
    unknown = sorted(names - there)
    if unknown:
        raise ValueError(
            f"keep: no option {', '.join(map(repr, unknown))} here; there are "
            f"{', '.join(sorted(there))}"
        )
    return names | ({"initial_lr"} if "lr" in names else set())


def with_kept(
    loaded: Mapping[str, Any], group: Mapping[str, Any], kept: Collection[str]
) -> dict[str, Any]:
    """Return a loaded group with some options as they were in ``group``, schedules included."""
    if not kept:
        return dict(loaded)
    made = {key: value for key, value in loaded.items() if key not in kept}
    made |= {key: group[key] for key in kept if key in group}
    schedules = {
        key: schedule
        for owner, is_kept in ((loaded, False), (group, True))
        for key, schedule in owner.get(SCHEDULES, {}).items()
        if (option_of(key) in kept) is is_kept
    }
    step = loaded.get(STEP, group.get(STEP, 0))
    made = {key: value for key, value in made.items() if key not in (SCHEDULES, STEP)}
    return {**made, SCHEDULES: schedules, STEP: step} if schedules else made
