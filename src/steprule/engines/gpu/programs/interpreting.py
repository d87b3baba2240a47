"""Whether kernels are interpreted: told apart from what interprets them, which imports Triton."""

from __future__ import annotations

import os


def is_interpreting() -> bool:
    """Tell whether kernels for CPU tensors are to be interpreted: Triton's own switch."""
    return os.environ.get("TRITON_INTERPRET") == "1"
