"""What ``torch.distributed.checkpoint`` asks of optimizers."""

from __future__ import annotations

import sys

_MODULE = "torch.distributed.checkpoint.state_dict"
# Frames between it and what asks: hooks, overridden steps.
_DEEPEST = 24


def is_asking() -> bool:
    """Tell whether the caller was called by ``torch.distributed.checkpoint``.

    It has an optimizer without state take a step with gradients of 0 and an lr of 0, for the state
    alone, and there is no other sign of it: such a step could be meant. It costs nothing while
    that module has not been imported.
    """
    if _MODULE not in sys.modules:
        return False
    frame = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == _MODULE:
            return True
        frame = frame.f_back  # type: ignore[assignment]  # None at the end
    return False
