"""What holds for every test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from steprule.engines import native_checks


@pytest.fixture(autouse=True)
def native_loops() -> Iterator[None]:
    """Runs of a few steps do without the native loops; tests are about them, too."""
    before = native_checks._is_wanted
    native_checks._is_wanted = True
    yield
    native_checks._is_wanted = before
