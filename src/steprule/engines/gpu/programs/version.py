"""Which Triton is installed, told without importing it (which takes half a second) if possible."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata

# Builds for torch's nightly versions and other makers' devices have names of their own.
_DISTRIBUTIONS = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-xpu")


@functools.cache
def triton_version() -> str:
    """Return the version."""
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    import triton

    return str(triton.__version__)
