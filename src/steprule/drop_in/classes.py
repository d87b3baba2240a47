"""Optimizers that are instances of torch's class of the same name."""

from __future__ import annotations

from collections.abc import Iterable

import torch


def pass_for_torchs(optimizers: Iterable[type]) -> None:
    """Make each class a subclass of torch's class of the same name, where torch has one.

    Scripts ask ``isinstance(optimizer, torch.optim.LBFGS)`` to decide about closures, libraries to
    choose a wrapper. torch's class goes behind our base in the order of lookup, so that nothing of
    it runs but what we have not: ``_init_group``, for subclasses that call it in a step of their
    own, and the helpers of LBFGS.
    """
    for cls in optimizers:
        theirs = getattr(torch.optim, cls.__name__, None)
        if isinstance(theirs, type) and not issubclass(cls, theirs):
            cls.__bases__ = (*cls.__bases__, theirs)
