"""Schedulers put back as they were, if loading their state fails halfway."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch.optim import Optimizer

from steprule.lr_scheduler import groups


@contextmanager
def unchanged(schedulers: Iterable[Any]) -> Iterator[None]:
    """Put schedulers, those they are made of, and the groups they drive back, if anything raises.

    Args:
        schedulers: of any kind, torch's included.
    """
    everyone = list(_with_members(schedulers))
    driven = {id(x): x for x in (getattr(each, "optimizer", None) for each in everyone)}
    with ExitStack() as stack:
        for optimizer in driven.values():
            if isinstance(optimizer, Optimizer):
                stack.enter_context(groups.unchanged(optimizer))
        stack.enter_context(attributes_unchanged(everyone))
        yield


@contextmanager
def attributes_unchanged(objects: Iterable[Any]) -> Iterator[None]:
    """Put the attributes of objects back, if anything raises; what they hold is not looked into."""
    before = [(each.__dict__, dict(each.__dict__)) for each in objects]
    try:
        yield
    except BaseException:
        for present, kept in before:
            present.clear()
            present.update(kept)
        raise


def _with_members(schedulers: Iterable[Any]) -> Iterator[Any]:
    for each in schedulers:
        yield each
        yield from _with_members(getattr(each, "_schedulers", ()))
