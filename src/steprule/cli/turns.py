"""Turns: some batches at a time, loaded once and handed to every contender."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from steprule.problems import ProblemError
from steprule.problems.batches import with_own_tensors
from steprule.problems.data import RowBatches
from steprule.problems.loading import seeded

# So many batches are held in memory.
TURN = 16


@dataclass(frozen=True)
class Turn:
    """Some batches, and whether an epoch ends with them."""

    batches: list[Any]
    ends_epoch: bool


def turns(batches: Iterable[Any], seed: int) -> Iterator[Turn]:
    """Yield the batches of epoch after epoch, their random numbers drawn from `seed`.

    Several are held, so batches are copied as they are drawn: whoever makes them may fill one
    buffer again and again.
    """
    keep = _as_it_is if _are_lasting(batches) else with_own_tensors
    place = itertools.count(2, 2)
    while True:
        with seeded(mixed(seed, next(place))):
            source = iter(batches)
            taken = [keep(batch) for batch in itertools.islice(source, TURN + 1)]
        if not taken:
            raise ProblemError("data gave no batch")
        while taken:
            # One more than a turn is drawn, to know whether it is the last of its epoch.
            yield Turn(taken[:TURN], len(taken) <= TURN)
            taken = taken[TURN:]
            if taken:
                with seeded(mixed(seed, next(place))):
                    taken += [keep(batch) for batch in itertools.islice(source, TURN)]


def _are_lasting(batches: Iterable[Any]) -> bool:
    """Tell whether no batch is made where another one was: what is pinned has just been copied."""
    return isinstance(batches, (list, tuple, RowBatches)) or bool(
        getattr(batches, "pin_memory", False)
    )


def _as_it_is(batch: Any) -> Any:
    return batch


def mixed(seed: int, place: int) -> int:
    """Return a seed of its own for each place in a run."""
    return (seed * 1_000_003 + place) % 2**63
