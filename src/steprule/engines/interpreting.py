"""Whether kernels are interpreted: told apart from what interprets them, which imports Triton."""

from __future__ import annotations

import os

#: Triton's own switch, and what it takes as set (other values, 0 among them, are none).
VARIABLE = "TRITON_INTERPRET"
_ON = ("1", "true", "on", "yes", "y")


def is_interpreting() -> bool:
    """Tell whether kernels for CPU tensors are to be interpreted, as Triton reads its variable."""
    return os.environ.get(VARIABLE, "").lower() in _ON
