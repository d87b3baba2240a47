"""Classes that are torch's classes of the same name as well."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType


def pass_for_torchs(classes: Iterable[type], module: ModuleType) -> None:
    """Make each class a subclass of the class of the same name in torch's ``module``, if any.

    Scripts ask ``isinstance(optimizer, torch.optim.LBFGS)`` to decide about closures, libraries to
    choose a wrapper or how to drive a scheduler. torch's class goes behind our base in the order of
    lookup, so that nothing of it runs but what we have not: ``_init_group``, for subclasses that
    call it in a step of their own, and the helpers of LBFGS.
    """
    for cls in classes:
        theirs = getattr(module, cls.__name__, None)
        if isinstance(theirs, type) and not issubclass(cls, theirs):
            cls.__bases__ = (*cls.__bases__, theirs)
