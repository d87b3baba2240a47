"""The Python in docs/schedules.md and docs/lr_scheduler.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[1] / "docs"
BLOCKS = [
    (page, number, block)
    for page in ("schedules.md", "lr_scheduler.md")
    for number, block in enumerate(
        re.findall(r"```python\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)
    )
]


@pytest.mark.parametrize(
    "block", [pytest.param(block, id=f"{page}-{number}") for page, number, block in BLOCKS]
)
def test_the_block_runs(block: str) -> None:
    exec(compile(block, "docs", "exec"), {})
