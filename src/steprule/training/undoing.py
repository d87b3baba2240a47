"""What is put back when loading is refused halfway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from steprule.checkpoints.random_states import random_states, set_random_states


@contextmanager
def undone_if_refused(
    schedulers: Iterable[Any], optimizers: Iterable[Any], *, is_random: bool
) -> Iterator[None]:
    """Put back schedulers, the groups that they set, and optimizers, if anything inside raises.

    Args:
        schedulers: of any kind.
        optimizers: those that can't be asked beforehand; they make their state anew on loading.
        is_random: whether to put back the random generators as well.
    """
    holders = [*_with_members(schedulers), *optimizers]
    attributes = [dict(holder.__dict__) for holder in holders]
    driven = [getattr(holder, "optimizer", holder) for holder in holders]
    groups = [group for each in driven for group in getattr(each, "param_groups", ())]
    options = [dict(group) for group in groups]
    states = [(each.state, dict(each.state)) for each in optimizers if hasattr(each, "state")]
    generators = random_states() if is_random else None
    try:
        yield
    except BaseException:
        for holder, before in zip(holders, attributes, strict=True):
            holder.__dict__.clear()
            holder.__dict__.update(before)
        for present, kept in [*zip(groups, options, strict=True), *states]:
            present.clear()
            present.update(kept)
        if generators is not None:
            set_random_states(generators)
        raise


def _with_members(schedulers: Iterable[Any]) -> Iterator[Any]:
    """Give schedulers, and those that they are made of."""
    for each in schedulers:
        yield each
        yield from _with_members(getattr(each, "_schedulers", ()))
