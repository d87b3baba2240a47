"""Schedules: each argument of each shape, their methods, text and JSON."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from error_cases import values
from error_cases.case import Case
from error_cases.values import Bad
from steprule import schedules
from steprule.schedules import Schedule, Shape, cosine, parse

ABOUT = "Schedules"
TEXT = "Schedules as text"
FLAT = schedules.constant(1)

#: What each shape is built of.
NEEDED: dict[str, dict[str, Any]] = {
    "constant": {"value": 1},
    "linear": {"start": 1, "stop": 0, "steps": 4},
    "cosine": {"start": 1, "stop": 0, "steps": 4},
    "polynomial": {"start": 1, "stop": 0, "steps": 4},
    "exponential": {"start": 1, "gamma": 0.5},
    "step_decay": {"start": 1, "gamma": 0.5, "every": 2},
    "cosine_restarts": {"start": 1, "stop": 0, "steps": 2},
    "cyclic": {"low": 0, "high": 1, "up": 2},
    "one_cycle": {"peak": 1, "steps": 4},
    "piecewise": {"values": {0: 1}},
    "from_points": {"points": [(0, 1)]},
    "inverse_sqrt": {"peak": 1, "warmup": 2},
    "wsd": {"peak": 1, "warmup": 2, "stable": 2, "decay": 2},
}
NUMBERS = values.PLAIN_NUMBERS
COUNTS = values.COUNTS
WORDS = values.WORDS
EPOCHS = 'Pass steps_per_epoch with, and only with, per="epoch".'
POINTS = (
    Bad("3", 3, TypeError, "Pass pairs (step, value)."),
    Bad("[]", [], ValueError, "Pass at least one pair (step, value)."),
    Bad("[(0, 'a')]", [(0, "a")], TypeError, "Pass numbers.", "'a'"),
    Bad("[(0, 1), (0, 2)]", [(0, 1), (0, 2)], ValueError, "Give each step once, rising.", "0"),
)
#: What arguments take, by their names; the same in all shapes that have them.
KINDS: dict[str, tuple[Bad, ...]] = {
    **dict.fromkeys(
        (
            "value",
            "start",
            "stop",
            "power",
            "gamma",
            "peak_mult",
            "low",
            "high",
            "peak",
            "pct_start",
            "div_factor",
            "final_div_factor",
            "end",
        ),
        NUMBERS,
    ),
    **dict.fromkeys(
        ("steps", "every", "cycle_mult", "up", "down", "warmup", "stable", "decay"), COUNTS
    ),
    **dict.fromkeys(("mode", "anneal", "per"), WORDS),
    "three_phase": values.FLAGS,
    "steps_per_epoch": (Bad("3", 3, ValueError, EPOCHS),),
    "values": (*POINTS, Bad("{5: 1}", {5: 1}, ValueError, "Say what holds at step 0.", "{5: 1.0}")),
    "points": POINTS,
}
#: Calls of methods: argument, given, call, error, what the message says, remedy.
METHODS: tuple[
    tuple[str, str, str, Callable[[Any], object], type[Exception], tuple[str, ...], str], ...
] = (
    (
        "Schedule",
        "step",
        "'3'",
        lambda _: FLAT("3"),
        TypeError,
        ("step", "'3'"),
        "Pass a whole number or an array of them.",
    ),
    (
        "Schedule",
        "step",
        "-1",
        lambda _: FLAT(-1),
        ValueError,
        ("step", "-1"),
        "Pass 0 for the first step.",
    ),
    (
        "Schedule.then",
        "other",
        "3",
        lambda _: FLAT.then(3, at=9),
        TypeError,
        ("other", "3"),
        "Write constant(3).",
    ),
    (
        "Schedule.then",
        "at",
        "-1",
        lambda _: FLAT.then(FLAT, at=-1),
        ValueError,
        ("at", "-1"),
        "Pass a step of 0 or more.",
    ),
    (
        "Schedule.warmup",
        "steps",
        "'5'",
        lambda _: FLAT.warmup("5"),
        TypeError,
        ("steps", "'5'"),
        "Pass a whole number.",
    ),
    (
        "Schedule.warmup",
        "steps",
        "0.1",
        lambda _: FLAT.warmup(0.1),  # type: ignore[arg-type]
        ValueError,
        ("steps", "0.1", "not a share"),
        "Pass a count: round(0.1 * total).",
    ),
    (
        "cosine",
        "warmup",
        "2",
        lambda _: cosine(1, 0, 10, warmup=2),  # type: ignore[call-arg]
        TypeError,
        ("'warmup'", "cosine(...).warmup(2)"),
        "Call the method of the schedule.",
    ),
    (
        "Schedule.warmup",
        "per",
        "'epoch', of a schedule in steps",
        lambda _: FLAT.warmup(5, per="epoch"),
        ValueError,
        ("per", "epoch"),
        'Build the schedule with per="epoch" and steps_per_epoch.',
    ),
    (
        "Schedule.repeat",
        "steps",
        "0",
        lambda _: FLAT.repeat(0),
        ValueError,
        ("steps", "0"),
        "Repeat at least one step.",
    ),
    (
        "Schedule.clip",
        "lo, hi",
        "(2, 1)",
        lambda _: FLAT.clip(2, 1),
        ValueError,
        ("lo", "hi", "2", "1"),
        "Swap them.",
    ),
    (
        "Schedule.clip",
        "lo",
        "'a'",
        lambda _: FLAT.clip("a"),
        TypeError,
        ("lo", "'a'"),
        "Pass a number, or None for no bound.",
    ),
    (
        "Schedule.table",
        "steps",
        "'9'",
        lambda _: FLAT.table("9"),
        TypeError,
        ("steps", "'9'"),
        "Pass a number of steps, or a list of steps.",
    ),
    (
        "Schedule.from_json",
        "data",
        "'x'",
        lambda _: Schedule.from_json("x"),
        ValueError,
        ("schedule", "'x'"),
        "Pass what to_json() gave, or that as JSON.",
    ),
    (
        "Schedule.from_json",
        "data",
        "{'schedule': 'rise'}",
        lambda _: Schedule.from_json({"schedule": "rise"}),
        ValueError,
        ("schedule", "'rise'"),
        "Name a schedule that the message lists.",
    ),
    (
        "Shape",
        "per",
        "'batch'",
        lambda _: Shape(per="batch"),
        ValueError,
        ("per", "'batch'"),
        'Pass "step" or "epoch".',
    ),
    (
        "Shape",
        "steps_per_epoch",
        "3",
        lambda _: Shape(steps_per_epoch=3),
        ValueError,
        ("steps_per_epoch", "3"),
        EPOCHS,
    ),
    (
        "cosine",
        "steps_per_epoch",
        "None, with per='epoch'",
        lambda _: cosine(1, 0, steps=9, per="epoch"),
        ValueError,
        ("steps_per_epoch",),
        EPOCHS,
    ),
)
#: Text that is no schedule: what the message says, and the remedy.
TEXTS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("", ("nothing to read",), "Write a schedule."),
    ("3", ("plain value", "3"), "Write constant(3)."),
    ("cosine", ("'cosine'", "cosine(...)"), "Write its arguments."),
    ("cosin(1, 0, steps=9)", ("'cosin'",), "Write a name that the message lists."),
    ("cosine(1, 0, steps=9", ("cannot read",), "Close the bracket."),
    ("cosine(1, 0, steps='a')", ("steps", "'a'"), "Write a number."),
    ("cosine(1, 0, length=9)", ("'length'",), "Write an argument that the message lists."),
    ("cosine(1, 0, steps=9).rise(3)", (".rise",), "Write a method that the message lists."),
    ("cosine(1, 0, steps=9) + 1", ("expected",), "Only products are read: 0.5 * cosine(...)."),
    ("2 * 3", ("schedule",), "Multiply a schedule."),
    ("__import__('os')", ("'__import__'",), "Only schedules are called; nothing is evaluated."),
)


def cases() -> Iterator[Case]:
    shown: set[tuple[str, str]] = set()
    for name, needed in NEEDED.items():
        cls = getattr(schedules, name)
        for argument in inspect.signature(cls).parameters:
            for bad in KINDS[argument]:
                alike = KINDS[argument] if KINDS[argument] is not WORDS else argument
                message = str(alike), bad.text
                yield Case(
                    ABOUT,
                    name,
                    argument,
                    bad.text,
                    lambda _, cls=cls, given={**needed, argument: bad.value}: cls(**given),
                    bad.error,
                    bad.remedy,
                    (bad.expected,)
                    if argument in ("values", "points")
                    else (argument, bad.expected),
                    is_shown=message not in shown,
                )
                shown.add(message)
    for where, argument, text, call, error, says, remedy in METHODS:
        yield Case(ABOUT, where, argument, text, call, error, remedy, says)
    for text, says, remedy in TEXTS:
        yield Case(
            TEXT,
            "schedules.parse",
            "text",
            repr(text),
            lambda _, text=text: parse(text),
            schedules.ParseError,
            remedy,
            says,
        )
    yield Case(
        TEXT,
        "schedules.parse",
        "text",
        "3",
        lambda _: parse(3),
        TypeError,
        "Pass text; a schedule that there is already needs no reading.",
    )
