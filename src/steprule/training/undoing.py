"""What is put back when loading is refused halfway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from steprule.checkpoints.random_states import random_states, set_random_states
from steprule.lr_scheduler.undoing import attributes_unchanged, unchanged


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
    others = list(optimizers)
    groups = [group for each in others for group in each.param_groups]
    held = [*groups, *(each.state for each in others if hasattr(each, "state"))]
    before = [dict(each) for each in held]
    generators = random_states() if is_random else None
    with unchanged(schedulers), attributes_unchanged(others):
        try:
            yield
        except BaseException:
            for present, kept in zip(held, before, strict=True):
                present.clear()
                present.update(kept)
            if generators is not None:
                set_random_states(generators)
            raise
