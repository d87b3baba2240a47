"""The Python in the docs runs, and the links between the pages hold."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_python_runs_from_top_to_bottom(page: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile("\n".join(blocks), page.name, "exec"), names)


def test_the_optimizer_that_is_shown_whole_is_the_one_there_is() -> None:
    rule = ROOT / "src" / "steprule" / "rules" / "lion.py"
    assert f"```python\n{rule.read_text()}```" in (ROOT / "CONTRIBUTING.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)[^):]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_file_shown_to_contributors_is_the_one_there_is() -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    whole = (ROOT / "src" / "steprule" / "rules" / "lion.py").read_text(encoding="utf-8")
    assert f"```python\n{whole}```" in shown


@pytest.mark.parametrize(
    "module",
    [
        "language.rule",
        "optimizer.backward_steps",
        "optimizer.custom",
        "schedules",
        "schedules.base",
        "warming.warm",
    ],
)
def test_examples_in_docstrings_hold(module: str) -> None:
    result = doctest.testmod(importlib.import_module(f"steprule.{module}"))
    assert result.attempted
    assert not result.failed
