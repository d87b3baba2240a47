"""What holds for every test."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
from processes import ended_at_exit

from steprule.engines.native import loops

with contextlib.suppress(ImportError):
    # Kernels for GPUs are interpreted. Triton itself must not know while it is imported, or it
    # would not compile any more.
    os.environ.pop("TRITON_INTERPRET", None)
    import triton  # noqa: F401

    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def native_loops() -> Iterator[None]:
    """Runs of a few steps do without the native loops; tests are about them, too."""
    before = loops._is_enabled
    loops._is_enabled = True
    yield
    loops._is_enabled = before


@pytest.fixture(scope="session", autouse=True)
def processes() -> Iterator[None]:
    """Ends the processes that tests of many ranks have started."""
    with ended_at_exit():
        yield
