"""Pure schedules: their formulas, their corners, their laws, and writing them down."""

from __future__ import annotations

import copy
import doctest
import importlib
import json
import math
import pickle
import pkgutil
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import steprule.schedules as schedules
from steprule.schedules import (
    Schedule,
    constant,
    cosine,
    cosine_restarts,
    cyclic,
    exponential,
    from_points,
    inverse_sqrt,
    linear,
    one_cycle,
    parse,
    piecewise,
    polynomial,
    step_decay,
    wsd,
)

values = st.floats(-10, 10)
lengths = st.integers(1, 60)
units = st.sampled_from([{}, {"per": "epoch", "steps_per_epoch": 7}])
steps = st.integers(0, 500)

shapes = st.one_of(
    st.builds(lambda v, u: constant(v, **u), values, units),
    st.builds(lambda a, b, n, u: linear(a, b, n, **u), values, values, lengths, units),
    st.builds(lambda a, b, n, u: cosine(a, b, n, **u), values, values, lengths, units),
    st.builds(
        lambda a, b, n, p: polynomial(a, b, n, p), values, values, lengths, st.floats(0.1, 4)
    ),
    st.builds(cosine_restarts, values, values, lengths, st.integers(1, 3), st.floats(0.2, 1.2)),
    st.builds(lambda a, g, u: exponential(a, g, **u), values, st.floats(0, 1.01), units),
    st.builds(step_decay, values, st.floats(0, 1.01), lengths),
    st.builds(
        lambda first, more, u: piecewise({0: first} | more, **u),
        values,
        st.dictionaries(lengths, values, max_size=3).map(lambda d: dict(sorted(d.items()))),
        units,
    ),
    st.builds(
        cyclic,
        values,
        values,
        lengths,
        st.none() | lengths,
        st.sampled_from(["triangular", "triangular2", "exp_range"]),
        st.floats(0.5, 1),
    ),
    st.builds(
        one_cycle,
        values,
        lengths,
        st.floats(0, 1),
        st.floats(1, 50),
        st.floats(1, 1e5),
        st.sampled_from(["cos", "linear"]),
        st.booleans(),
    ),
    st.builds(lambda p, w, u: inverse_sqrt(p, w, **u), values, lengths, units),
    st.builds(wsd, values, st.integers(0, 9), st.integers(0, 9), st.integers(0, 9), values),
    st.builds(
        from_points,
        st.dictionaries(steps, values, min_size=1, max_size=5).map(lambda d: sorted(d.items())),
    ),
)


def composed(inner: st.SearchStrategy[Schedule]) -> st.SearchStrategy[Schedule]:
    whole = st.integers(0, 40)
    return st.one_of(
        st.builds(lambda a, b, n: a.then(b, at=n), inner, inner, whole),
        st.builds(
            lambda a, n, p: a.warmup(n, per=p), inner, whole, st.sampled_from([None, "step"])
        ),
        st.builds(lambda a, f: a * f, inner, values),
        st.builds(lambda a, b: a * b, inner, inner),
        st.builds(lambda a, lo, d: a.clip(lo, lo + d), inner, values, st.floats(0, 5)),
        st.builds(lambda a, hi: a.clip(hi=hi), inner, values),
        st.builds(lambda a, n: a.repeat(n), inner, lengths),
    )


anything = st.recursive(shapes, composed, max_leaves=4)


# ---- laws every schedule keeps -----------------------------------------------------------------
@settings(max_examples=150, deadline=None)
@given(schedule=anything, asked=st.lists(steps, min_size=1, max_size=30))
def test_an_array_of_steps_gives_the_array_of_values(schedule: Schedule, asked: list[int]) -> None:
    single = [schedule(step) for step in asked]
    assert all(isinstance(value, float) and math.isfinite(value) for value in single)
    together = schedule(np.array(asked))
    assert together.dtype == np.float64
    assert together.tolist() == single
    assert schedule(np.array(asked).reshape(-1, 1)).tolist() == [[value] for value in single]


@settings(max_examples=150, deadline=None)
@given(schedule=anything)
def test_it_can_be_written_down_in_every_way(schedule: Schedule) -> None:
    assert (
        Schedule.from_json(json.loads(json.dumps(schedule.to_json(), allow_nan=False))) == schedule
    )
    assert Schedule.from_json(json.dumps(schedule.to_json())) == schedule
    assert parse(repr(schedule)) == schedule
    assert repr(parse(repr(schedule))) == repr(schedule)
    assert eval(repr(schedule), vars(schedules)) == schedule
    assert pickle.loads(pickle.dumps(schedule)) == schedule == copy.deepcopy(schedule)
    assert len({schedule, copy.deepcopy(schedule)}) == 1
    again = Schedule.from_json(schedule.to_json())
    assert again(np.arange(200)).tolist() == schedule(np.arange(200)).tolist()


@settings(max_examples=80, deadline=None)
@given(a=anything, b=anything, n=st.integers(0, 50), step=steps, factor=values)
def test_compositions_mean_what_they_say(
    a: Schedule, b: Schedule, n: int, step: int, factor: float
) -> None:
    at = n * a.unit
    assert a.then(b, at=n)(step) == (a(step) if step < at else b(step - at))
    first = a(0)
    assert a.warmup(n)(step) == (first * (step / at) if step < at else a(step - at))
    assert (a * factor)(step) == a(step) * factor == (factor * a)(step)
    assert a.repeat(n + 1)(step) == a(step % ((n + 1) * a.unit))
    assert a.clip(-1, 1)(step) == min(max(a(step), -1), 1)
    assert (a * b)(step) == a(step) * b(step)


@settings(max_examples=50, deadline=None)
@given(a=shapes, b=shapes, c=shapes, m=st.integers(0, 30), n=st.integers(0, 30), step=steps)
def test_then_is_associative(
    a: Schedule, b: Schedule, c: Schedule, m: int, n: int, step: int
) -> None:
    left = a.then(b, at=m, per="step").then(c, at=m + n, per="step")
    right = a.then(b.then(c, at=n, per="step"), at=m, per="step")
    assert left(step) == right(step)


@settings(max_examples=50, deadline=None)
@given(start=values, stop=values, length=lengths, beyond=st.integers(0, 10**9))
def test_ends_are_exact_and_the_last_value_is_held(
    start: float, stop: float, length: int, beyond: int
) -> None:
    for shape in (linear, cosine, polynomial):
        schedule = shape(start, stop, length)
        assert schedule(0) == start
        assert schedule(length) == schedule(length + beyond) == stop


# ---- formulas, against slow ones ---------------------------------------------------------------
def test_formulas() -> None:
    for step in range(0, 400, 3):
        share = min(step / 90, 1)
        assert cosine(0.3, 0.01, 90)(step) == pytest.approx(
            0.01 + 0.29 * (1 + math.cos(math.pi * share)) / 2, rel=1e-12
        )
        assert polynomial(0.3, 0.01, 90, 2.5)(step) == pytest.approx(
            0.01 + 0.29 * (1 - share) ** 2.5, rel=1e-12
        )
        assert exponential(0.3, 0.97)(step) == pytest.approx(0.3 * 0.97**step, rel=1e-12)
        assert step_decay(0.3, 0.5, 30)(step) == pytest.approx(0.3 * 0.5 ** (step // 30), rel=1e-12)
        assert inverse_sqrt(0.3, 40)(step) == pytest.approx(
            0.3 * (min(step / 40, math.sqrt(40 / step)) if step else 0), rel=1e-12
        )


@pytest.mark.parametrize("mult", [1, 2, 3, 5])
def test_restarts_against_a_slow_recurrence(mult: int) -> None:
    schedule = cosine_restarts(1.0, 0.1, 5, cycle_mult=mult, peak_mult=0.5)
    into, length, peak = 0, 5, 1.0
    for step in range(4000):
        expected = 0.1 + (peak - 0.1) * (1 + math.cos(math.pi * into / length)) / 2
        assert schedule(step) == pytest.approx(expected, rel=1e-12)
        into += 1
        if into == length:
            into, length, peak = 0, length * mult, peak * 0.5


def test_epochs_are_explicit() -> None:
    in_steps = cosine(1, 0, 10)
    in_epochs = cosine(1, 0, 10, per="epoch", steps_per_epoch=50)
    for step in range(0, 700, 13):
        assert in_epochs(step) == in_steps(step // 50)
    # A warm-up counted in epochs rises with every update.
    warmed = in_epochs.warmup(2)
    assert [warmed(step) for step in (0, 25, 99, 100)] == [0, 0.25, 0.99, 1]
    assert in_epochs.warmup(25, per="step")(25) == 1
    joined = in_epochs.then(constant(7), at=2)
    assert (joined(99), joined(100)) == (in_epochs(99), 7)


def test_empty_phases_of_wsd() -> None:
    assert wsd(1, 0, 0, 0, 0.5).table(2) == ((0, 0.5), (1, 0.5))
    assert wsd(1, 0, 2, 0)([0, 1, 2]).tolist() == [1, 1, 0]


# ---- looking at it -----------------------------------------------------------------------------
def test_tables_print_in_columns() -> None:
    table = linear(1, 0, steps=2).table([0, 1, 100])
    assert table == ((0, 1.0), (1, 0.5), (100, 0.0))
    assert str(table).splitlines()[1] == "   0  1.0"
    assert from_points(linear(1, 0, 2).table(3)) == from_points([(0, 1), (1, 0.5), (2, 0)])


def test_steps_are_whole_and_not_negative() -> None:
    for bad in (-1, 0.5, [0, -3], np.nan):
        with pytest.raises(ValueError, match="step must be whole and not negative"):
            linear(1, 0, 3)(bad)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="step must be an int"):
        linear(1, 0, 3)("3")  # type: ignore[call-overload]
    assert linear(1, 0, 4)(2.0) == 0.5  # type: ignore[call-overload]
    assert linear(1, 0, 4)(np.array([], dtype=int)).tolist() == []


def test_schedules_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        cosine(1, 0, 3).start = 2.0  # type: ignore[misc]


# ---- bad arguments -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: cosine(1, 0, 0), ValueError, "steps must be a whole number of at least 1, got 0"),
        (lambda: cosine(1, 0, 2.5), ValueError, "steps must be a whole number, got 2.5: round"),
        (lambda: cosine("1", 0, 2), TypeError, "start must be a number, got '1'"),
        (lambda: cosine(True, 0, 2), TypeError, "start must be a number, got True"),
        (lambda: linear(math.inf, 0, 2), ValueError, "start must be a finite number"),
        (lambda: polynomial(1, 0, 2, 0), ValueError, "power must be above 0"),
        (lambda: exponential(1, -1), ValueError, "gamma must be at least 0"),
        (lambda: piecewise({}), ValueError, "at least one"),
        (lambda: piecewise({3: 1}), ValueError, "values must say what holds at step 0"),
        (lambda: piecewise({0: 1, 5: 1, 3: 2}), ValueError, "rising steps, got 3 after 5"),
        (lambda: from_points([(0, 1), (0, 2)]), ValueError, "rising"),
        (lambda: from_points([1, 2]), TypeError, "pairs"),
        (lambda: cyclic(0, 1, 5, mode="saw"), ValueError, "mode must be 'triangular' or"),
        (lambda: one_cycle(1, 5, pct_start=2), ValueError, "pct_start is a share"),
        (lambda: one_cycle(1, 5, anneal="exp"), ValueError, "anneal must be 'cos' or 'linear'"),
        (lambda: inverse_sqrt(1, 0), ValueError, "warmup must be .* at least 1"),
        (lambda: wsd(1, -1, 0, 0), ValueError, "warmup must be"),
        (lambda: cosine(1, 0, 5, per="epoch"), ValueError, "needs steps_per_epoch"),
        (lambda: cosine(1, 0, 5, steps_per_epoch=3), ValueError, "has no meaning with per="),
        (lambda: cosine(1, 0, 5, per="batch"), ValueError, "per must be 'step' or 'epoch'"),
        (lambda: constant(1).then(2, at=3), TypeError, "other must be a schedule, got 2: .*const"),
        (lambda: constant(1).then(constant(2), at=-3), ValueError, "at must be"),
        (lambda: constant(1).warmup(-1), ValueError, "steps must be"),
        (lambda: constant(1).warmup(1, per="epoch"), ValueError, 'built with per="epoch"'),
        (lambda: constant(1).repeat(0), ValueError, "steps must be"),
        (lambda: constant(1).clip(), ValueError, "clip needs a bound"),
        (lambda: constant(1).clip(2, 1), ValueError, "lo must not be above hi"),
        (lambda: constant(1) * math.nan, ValueError, "factor must be a finite number"),
        (lambda: Schedule.from_json({}), ValueError, "not a schedule"),
        (lambda: Schedule.from_json({"schedule": "sine"}), ValueError, "unknown schedule 'sine'"),
        (lambda: Schedule.from_json({"schedule": "constant"}), ValueError, "cannot be built"),
    ],
)
def test_bad_arguments_are_refused_by_name(build: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        build()


def test_a_schedule_times_something_else_is_a_type_error() -> None:
    with pytest.raises(TypeError):
        constant(1) * "x"  # type: ignore[operator]


# ---- the package -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "name", [module.name for module in pkgutil.iter_modules(schedules.__path__)]
)
def test_examples_in_docstrings(name: str) -> None:
    module = importlib.import_module(f"steprule.schedules.{name}")
    assert doctest.testmod(module).failed == 0


def test_importing_schedules_leaves_matplotlib_alone() -> None:
    code = "import sys, steprule.schedules; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_all_is_what_can_be_imported() -> None:
    assert schedules.__all__ == sorted(schedules.__all__)
    assert all(hasattr(schedules, name) for name in schedules.__all__)
