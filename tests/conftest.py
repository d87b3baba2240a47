"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steprule.engines.native import loops


@pytest.fixture(autouse=True)
def native_loops() -> Iterator[None]:
    """Runs of a few steps do without the native loops; tests are about them, too."""
    before = loops._is_enabled
    loops._is_enabled = True
    yield
    loops._is_enabled = before
