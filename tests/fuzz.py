"""Inputs by the hundred thousand for what reads text and files: none but its own errors may come.

``script/fuzz [--examples N] [TARGET...]`` runs them; the tests run a few hundred of each. A target
is a strategy for inputs and a function that takes one and raises only where something is wrong.
Another one is a line in :data:`TARGETS`.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import random
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fuzz_checkpoints
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from steprule.cli.errors import CommandError
from steprule.cli.warm import parse_options
from steprule.lr_scheduler.parse import parse_scheduler
from steprule.schedules import Schedule
from steprule.schedules.base import _kinds
from steprule.schedules.parse import LONGEST, ParseError, parse, parse_value

#: What became of the inputs, by target.
outcomes: Counter[tuple[str, str]] = Counter()

# -- texts -------------------------------------------------------------------------------------

NUMBERS = st.one_of(
    st.integers(-5, 100).map(str),
    st.floats().map(repr),
    st.sampled_from(["1e308", "1e999", "-1e-320", "10**9", "9" * 400, "0x1F", "1_0", "٣", "1j"]),
    st.sampled_from(["None", "True", "nan", "inf", "'step'", '"epoch"', "[]", "()", "{}", "..."]),
)
NAMES = st.sampled_from(
    [*_kinds, "__import__", "lambda", "x", "exec", "Schedule", "cosine.__class__"]
)
_KEYS = """
start stop steps value per steps_per_epoch at other lo hi factor values points power gamma period
low high end inner schedule
"""
KEYS = st.sampled_from(_KEYS.split())


def _call(arguments: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    argument = st.one_of(arguments, st.tuples(KEYS, arguments).map("=".join))
    listed = st.lists(argument, max_size=4).map(", ".join)
    return st.one_of(
        st.tuples(NAMES, listed).map(lambda x: f"{x[0]}({x[1]})"),
        st.tuples(arguments, NAMES, listed).map(lambda x: f"{x[0]}.{x[1]}({x[2]})"),
        st.tuples(arguments, st.sampled_from("*+-/@ "), arguments).map("".join),
        st.lists(arguments, max_size=3).map(lambda x: "[" + ", ".join(x) + "]"),
        st.lists(st.tuples(NUMBERS, arguments), max_size=3).map(
            lambda x: "{" + ", ".join(f"{key}: {value}" for key, value in x) + "}"
        ),
    )


EXAMPLES = [
    "cosine(0.1, 0, steps=90).warmup(5)",
    "0.5 * linear(1, 0, steps=4).then(constant(0.1), at=7)",
    "piecewise({0: 0.1, 30: 0.01}).repeat(40).clip(0.01, 0.05)",
    "from_points([(0, 0.0), (10, 1.0)]) * linear(1, 0, steps=3)",
    "linear(1, 0, steps=3, per='epoch', steps_per_epoch=10).warmup(2, per='step')",
]
SOUND = st.recursive(
    st.builds(
        "{}({}, {}, steps={})".format,
        st.sampled_from(["cosine", "linear"]),
        st.floats(-1e9, 1e9),
        st.integers(-3, 3),
        st.integers(1, 10**6),
    ),
    lambda inner: st.one_of(
        st.builds("{}.warmup({})".format, inner, st.integers(0, 99)),
        st.builds("{}.clip({}, hi=9)".format, inner, st.floats(-9, 9)),
        st.builds("{}.then({}, at={})".format, inner, inner, st.integers(0, 99)),
        st.builds("{} * {}".format, inner, st.one_of(inner, st.integers(-9, 9))),
    ),
    max_leaves=5,
)
VALID = st.one_of(
    st.sampled_from(EXAMPLES), SOUND, SOUND, st.recursive(NUMBERS, _call, max_leaves=8)
)
PIECES = [
    *["(", ")", "((", ".clip(0)", "-" * 50, "*1", "\x00", "\n", "\\", "#", "'", "٣", "=**x", ","],
    *["9" * 5000, "(" * 300, "[" * 99, ".repeat(1)" * 60, "-" * 9000, "ﬁ", "\ud800", "{"],
    *["1e999", " if 1 else "],
]


@st.composite
def mutated(draw: Any, texts: st.SearchStrategy[str] = VALID) -> str:
    """A text, or one with a few pieces taken out, put in or doubled."""
    text: str = draw(texts)
    chance = random.Random(draw(st.integers(0, 2**32)))  # one draw: hypothesis takes long for many
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2, 4]))):
        first, last = sorted(chance.randrange(len(text) + 1) for _ in range(2))
        last = min(last, first + chance.choice([0, 1, 5, 99]))
        middle = chance.choice(["", chance.choice(PIECES), chr(chance.randrange(1, 0x3000))])
        text = text[:first] + chance.choice([middle, text[first:last] * 2]) + text[last:]
    return text


def read_schedule(text: str) -> str:
    try:
        schedule = parse(text)
    except ParseError:
        return "refused"
    shown = repr(schedule)
    if len(shown) <= LONGEST:
        assert parse(shown) == schedule
    assert Schedule.from_json(json.dumps(schedule.to_json())) == schedule
    hash(schedule)
    return "read"


def read_value(text: str) -> str:
    try:
        parse_value(text)
    except ParseError:
        return "refused"
    return "read"


SCHEDULERS = st.one_of(
    st.sampled_from(
        [
            "StepLR:step_size=30,gamma=0.1",
            "CosineAnnealingLR:T_max=10,eta_min=0.01,lr=0.5",
            "MultiStepLR:milestones=[3,5],lr=[0.1,0.2]",
            "OneCycleLR:max_lr=0.1,total_steps=20",
            "CyclicLR:base_lr=0.1,max_lr=1,mode='triangular2'",
            "PolynomialLR:total_iters=3,power=2.0",
            "CosineAnnealingWarmRestarts:T_0=2,T_mult=3",
            "LinearLR:",
            "ExponentialLR:gamma=1e300",
        ]
    ),
)


def read_scheduler(text: str) -> str:
    try:
        parse_scheduler(text, [0.1])
    except ParseError:
        return "refused"
    return "read"


def read_options(text: str) -> str:
    try:
        parse_options(text)
    except CommandError:
        return "refused"
    return "read"


# -- JSON --------------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(KEYS, st.text(max_size=3)), inner, max_size=4),
        st.tuples(NAMES, st.dictionaries(KEYS, inner, max_size=4)).map(
            lambda x: {"schedule": x[0], **x[1]}
        ),
        st.tuples(st.sampled_from(sorted(_kinds)), inner, inner).map(
            lambda x: {"schedule": x[0], "inner": x[1], "steps": x[2]}
        ),
    ),
    max_leaves=15,
)
WRITTEN = st.sampled_from([parse(text).to_json() for text in EXAMPLES])
JSON = st.one_of(
    JSON_VALUES,
    mutated(JSON_VALUES.map(json.dumps)),
    mutated(WRITTEN.map(json.dumps)),
    st.builds(lambda whole, key, value: {**whole, key: value}, WRITTEN, KEYS, JSON_VALUES),
    st.tuples(
        st.integers(1, 3000), st.sampled_from(['{"a":', "[", '{"schedule":"clip","inner":'])
    ).map(lambda x: x[0] * x[1]),
)


def read_json(data: Any) -> str:
    try:
        schedule = Schedule.from_json(data)
    except ValueError:
        return "refused"
    assert Schedule.from_json(json.dumps(schedule.to_json())) == schedule
    repr(schedule)
    hash(schedule)
    return "read"


class Target(NamedTuple):
    """What is fuzzed: inputs, and what takes one and says what became of it."""

    inputs: st.SearchStrategy[Any]
    take: Callable[[Any], str]


@functools.cache
def _checkpoints() -> fuzz_checkpoints.Target:
    folder = tempfile.TemporaryDirectory()
    atexit.register(folder.cleanup)
    return fuzz_checkpoints.Target(Path(folder.name))


def read_checkpoint(seed: int) -> str:
    """Load a file that is made of a good one and of a seed."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what is odd and was taken
        return "read" if _checkpoints().run(random.Random(seed)) else "refused"


TARGETS: dict[str, Target] = {
    "checkpoint": Target(st.integers(0, 2**40), read_checkpoint),
    "schedule": Target(mutated(), read_schedule),
    "value": Target(mutated(), read_value),
    "scheduler": Target(mutated(SCHEDULERS), read_scheduler),
    "json": Target(JSON, read_json),
    "options": Target(mutated(st.just("momentum=0.9, betas=(0.9,0.99),n=[1,2]")), read_options),
}


def fuzz(name: str, examples: int) -> None:
    """Try a target with so many inputs; what it raises is shown with the smallest that does."""
    target = TARGETS[name]

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    @given(target.inputs)
    def try_one(given_input: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            outcomes[name, target.take(given_input)] += 1

    try_one()


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="script/fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--examples", type=int, default=100_000, help="inputs of each target")
    options = parser.parse_args()
    for name in options.targets or TARGETS:
        began = time.perf_counter()
        fuzz(name, options.examples)
        counts = ", ".join(
            f"{n} {what}" for (of, what), n in sorted(outcomes.items()) if of == name
        )
        print(f"{name}: {counts} ({time.perf_counter() - began:.0f} s)", flush=True)


if __name__ == "__main__":
    main()
