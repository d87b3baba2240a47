"""What is put back when loading is refused halfway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from steprule.checkpoints.random_states import random_states, set_random_states
from steprule.lr_scheduler.undoing import unchanged


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
    attributes = [dict(each.__dict__) for each in others]
    groups = [group for each in others for group in each.param_groups]
    options = [dict(group) for group in groups]
    states = [(each.state, dict(each.state)) for each in others if hasattr(each, "state")]
    generators = random_states() if is_random else None
    with unchanged(schedulers):
        try:
            yield
        except BaseException:
            for each, before in zip(others, attributes, strict=True):
                each.__dict__.clear()
                each.__dict__.update(before)
            for present, kept in [*zip(groups, options, strict=True), *states]:
                present.clear()
                present.update(kept)
            if generators is not None:
                set_random_states(generators)
            raise
