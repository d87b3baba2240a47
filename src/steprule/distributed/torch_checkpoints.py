"""What ``torch.distributed.checkpoint`` asks of optimizers."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_MODULE = "torch.distributed.checkpoint.state_dict"
# What it calls the lrs that it puts away, group by group, for a step.
_PUT_AWAY = "lrs"
# Frames between it and what asks: hooks, overridden steps.
_DEEPEST = 24


def is_asking() -> bool:
    """Tell whether the caller was called by ``torch.distributed.checkpoint``.

    It has an optimizer without state take a step with gradients of 0 and an lr of 0, for the state
    alone, and there is no other sign of it: such a step could be meant. It costs nothing while
    that module has not been imported.
    """
    return _asking_frame() is not None


def _asking_frame() -> FrameType | None:
    if _MODULE not in sys.modules:
        return None
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame is None or frame.f_globals.get("__name__") == _MODULE:
            return frame
        frame = frame.f_back
    return None


@contextmanager
def own_lrs(groups: Iterable[dict[str, Any]]) -> Iterator[None]:
    """Have groups at the lrs that ``torch.distributed.checkpoint`` has put away, within a block.

    State that starts at the lr (Rprop's step sizes) would start at 0 for good. Where the lrs are
    not found, as in another version of torch, they stay 0.
    """
    frame = _asking_frame()
    kept = None if frame is None else frame.f_locals.get(_PUT_AWAY)
    having = [group for group in groups if "lr" in group]
    if not isinstance(kept, list) or len(kept) != len(having):
        yield
        return
    present = [group["lr"] for group in having]
    for group, lr in zip(having, kept, strict=True):
        group["lr"] = lr
    try:
        yield
    finally:
        for group, lr in zip(having, present, strict=True):
            group["lr"] = lr
