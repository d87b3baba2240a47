"""The values that schedules have come to: refused at the step where one leaves its range.

A schedule may be of any length, so it is not known beforehand where it goes; a learning rate below
0 would climb the loss without a word. A number that somebody has put into a group is theirs, as in
torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steprule.language.guards import CLIP_RANGES
from steprule.language.rule import FINITE, RANGES, Range, Rule
from steprule.planning.schedule_keys import entry_of, option_of


def check_scheduled_values(rule: Rule | None, group: Mapping[str, Any], index: int) -> None:
    """Check what a group's schedules give for the step that is to be taken.

    Args:
        rule: the rule whose ranges hold (None: those of the field's standard names).
        group: the group.
        index: which one it is, for messages.

    Raises:
        ValueError: naming option, group, step and value.
    """
    for key, schedule in group.get("schedules", {}).items():
        name, entry = option_of(key), entry_of(key)
        value = group[name] if entry is None else group[name][entry]
        allowed = range_of(rule, name, entry)
        step = group["schedule_step"]
        if type(value) is float and value not in allowed and _is_same(value, schedule(step)):
            raise ValueError(
                f"group {index}: {key} must be {allowed}, and its schedule {schedule!r} gives "
                f"{value:g} at step {step}: nothing was changed. Mend the schedule, or bound it "
                "by .clip(lo, hi)"
            )


def range_of(rule: Rule | None, name: str, entry: int | None = None) -> Range:
    """Return the values that an option may take, or an entry of it."""
    if name in CLIP_RANGES:
        return CLIP_RANGES[name]
    if rule is None:
        return RANGES.get(name, FINITE)
    part = rule.parts[name][entry] if entry is not None and name in rule.parts else name
    return rule.ranges.get(part, rule.ranges.get(name, FINITE))


def _is_same(value: float, other: float) -> bool:
    return value == other or (value != value and other != other)  # nan
