"""A pytest plugin: each test begins with random numbers of its own, the same in every run.

Tests of other packages that draw without a seed pass or fail by luck. To compare two runs of them,
both must draw the same. ``STEPRULE_SUITES_SEED`` in the environment (default 0) gives other draws.
"""

from __future__ import annotations

import os
import random
import zlib

import numpy as np
import pytest
import torch


def seed(name: str) -> None:
    """Seed every generator that tests use, by a name."""
    number = zlib.crc32(f"{os.environ.get('STEPRULE_SUITES_SEED', '0')} {name}".encode())
    random.seed(number)
    np.random.seed(number)  # noqa: NPY002 -- it is the global generator that they draw from
    torch.manual_seed(number)


def pytest_configure() -> None:
    seed("")  # for what is drawn where the tests are collected


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    seed(item.name)
