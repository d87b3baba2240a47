"""Torch's wrappers that show an optimizer a part of the parameters, which nothing else tells."""

from __future__ import annotations

import sys
from types import FrameType

_MODULE = "torch.distributed.optim.zero_redundancy_optimizer"
# Frames between the wrapper and who asks: constructors, a function that makes the optimizer.
_DEEPEST = 12


def shows_a_part() -> bool:
    """Tell whether the caller was called by ``ZeroRedundancyOptimizer``, to be made for one rank.

    It costs nothing while that module has not been imported.
    """
    if _MODULE not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe(1)
    for _ in range(_DEEPEST):
        if frame is None:
            return False
        if frame.f_globals.get("__name__") == _MODULE:
            return True
        frame = frame.f_back
    return False
