"""Contenders timed in turn, so that whatever else the machine does falls on all of them."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

# State is made anew, in another order, for each trial: where memory happens to lie can make the
# same kernel a third faster.
TRIALS = 4


@dataclass(frozen=True)
class Timed:
    """What a contender does, once.

    Attributes:
        run: what is timed.
        before: done before each run, and not timed.
        settle: run once untimed before each reading, for who brings threads of its own: those
            of the contender before it may still be spinning on the cores.
    """

    run: Callable[[], Any]
    before: Callable[[], Any] | None = None
    settle: bool = False


#: Makes a contender ready to be timed, or returns None if it has to be left out.
Make = Callable[[], Timed | None]


def interleaved(
    contenders: Callable[[], Mapping[str, Make]],
    *,
    rounds: int,
    repeats: int = 1,
    trials: int = TRIALS,
) -> dict[str, list[float]]:
    """Return the seconds of a run, for each contender and round.

    Args:
        contenders: called for each trial, for makers over parameters in new memory.
        rounds: readings of each contender; at least so many, the same number in each trial.
        repeats: runs in a row that make one reading.
        trials: how often all is made anew, each time in another order.
    """
    readings: dict[str, list[float]] = {}
    trials = min(trials, rounds)
    for trial in range(trials):
        gc.collect()
        ready = _made(contenders(), trial)
        for index in range(-(-rounds // trials) + 1):
            for name, timed in ready.items():
                seconds = _reading(timed, repeats)
                if index:  # the first round of a trial warms the caches
                    readings.setdefault(name, []).append(seconds)
        ready.clear()
    return readings


def _made(makers: Mapping[str, Make], trial: int) -> dict[str, Timed]:
    names = list(makers)
    turned = [names[(index + trial) % len(names)] for index in range(len(names))]
    made = {name: makers[name]() for name in turned}
    return {name: timed for name, timed in made.items() if timed is not None}


def _reading(timed: Timed, repeats: int) -> float:
    run, before = timed.run, timed.before
    if timed.settle:
        run()
    if before is None:
        start = time.perf_counter()
        for _ in range(repeats):
            run()
        return (time.perf_counter() - start) / repeats
    total = 0.0
    for _ in range(repeats):
        before()
        start = time.perf_counter()
        run()
        total += time.perf_counter() - start
    return total / repeats
