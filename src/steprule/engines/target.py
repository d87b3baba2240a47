"""The card that kernels are compiled for ahead of time, which need not be there."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from contextvars import ContextVar

_target: ContextVar[int | None] = ContextVar("_target", default=None)
_NAME = re.compile(r"cuda:(\d{2,3})")
# The first with bfloat16.
_OLDEST = 80


def capability_of(target: str) -> int:
    """Return the compute capability that a target names: 90 for ``"cuda:90"``.

    Raises:
        ValueError: it names none.
    """
    found = _NAME.fullmatch(target.strip().lower())
    if found is None or int(found[1]) < _OLDEST:
        raise ValueError(
            f"unknown target {target!r}: expected cuda:80 (A100), cuda:86, cuda:89, cuda:90 "
            "(H100, H200), cuda:100 (B200) or another compute capability of NVIDIA's from 80 on"
        )
    return int(found[1])


def target() -> int | None:
    """Return the compute capability that kernels are compiled for and not run; None if none is."""
    return _target.get()


@contextlib.contextmanager
def compiling_for(capability: int) -> Iterator[None]:
    """Have the engine take parameters on the CPU, and only compile what it would launch."""
    token = _target.set(capability)
    try:
        yield
    finally:
        _target.reset(token)
