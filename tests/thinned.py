"""A pytest plugin: of the tests that were collected, every n-th runs.

Some packages test every combination of options with every other, tens of thousands of tests that
say the same. ``STEPRULE_SUITES_EVERY`` in the environment is n (default 1).
"""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items[:] = items[:: int(os.environ.get("STEPRULE_SUITES_EVERY", "1"))]
