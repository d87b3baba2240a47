"""What reads text and files, tried with random inputs: a few hundred here, more by script/fuzz."""

from __future__ import annotations

from typing import Any

import pytest
from fuzz import TARGETS, fuzz, outcomes

from steprule.schedules import Schedule, constant, linear
from steprule.schedules.limits import DEEPEST, LONGEST_JSON, MOST
from steprule.schedules.parse import ParseError, parse


@pytest.mark.parametrize("target", TARGETS)
def test_only_its_own_errors(target: str) -> None:
    fuzz(target, 200)
    assert {what for name, what in outcomes if name == target} >= {"read", "refused"}


def test_a_schedule_may_be_deep_but_not_too_deep() -> None:
    deep = "constant(1)" + ".clip(0)" * DEEPEST
    schedule = parse(deep)
    assert Schedule.from_json(schedule.to_json()) == schedule
    assert parse(repr(schedule)) == schedule
    assert schedule(3) == 1.0
    for text in (".clip(0)" * 1000, ".repeat(1)" * 900):
        with pytest.raises(ParseError, match="nested too deeply"):
            parse("constant(1)" + text)
    data: Any = {"schedule": "constant", "value": 1.0}
    for _ in range(5000):
        data = {"schedule": "clip", "inner": data, "lo": 0.0}
    with pytest.raises(ValueError, match="deep"):
        Schedule.from_json(data)
    for opening in ("[", '{"a":'):
        with pytest.raises(ValueError, match="deep"):
            Schedule.from_json(opening * 100_000)


def test_a_schedule_may_have_many_parts_but_not_too_many() -> None:
    points = [(step, 1.0) for step in range(50_000)]
    found = Schedule.from_json({"schedule": "from_points", "points": points})
    assert found(49_999) == 1.0
    with pytest.raises(ValueError, match="parts"):
        Schedule.from_json({"schedule": "from_points", "points": [0.0] * (MOST + 1)})
    # Few objects, but each is looked at as often as it is there: two to the fortieth.
    data = constant(1).to_json()
    for _ in range(40):
        data = {"schedule": "then", "inner": data, "other": data, "at": 1}
    with pytest.raises(ValueError, match="parts"):
        Schedule.from_json(data)
    with pytest.raises(ValueError, match="longer"):
        Schedule.from_json(" " * (LONGEST_JSON + 1))


def test_what_is_read_is_what_was_written() -> None:
    schedule = linear(0.1, 0, steps=9).warmup(3)
    assert Schedule.from_json(schedule.to_json()) == parse(repr(schedule)) == schedule
