"""The Python in the docs runs, and the links between the pages hold."""

from __future__ import annotations

import doctest
import functools
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# README.md has tests of its own, for what it runs.
LINKED = [*PAGES, *(ROOT / name for name in ("README.md", "CHANGELOG.md", "SECURITY.md"))]
LINKED += sorted((ROOT / "examples").rglob("*.md"))

#: Pages with Python that is shown and not run, written ```py, and why.
NOT_RUN = {
    "README.md": "sharding needs several processes",
    "docs/clients.md": "each section runs in the tests of its library",
    "docs/distributed.md": "sharding needs several processes",
}
#: What the site's home page links to and the site makes; building it checks these links.
MADE_BY_THE_SITE = ("reference/", "optimizers/", "schedules/gallery.md", "examples/")
_FENCED = re.compile(r"^ *(```+|~~~+)([\w-]*)[^\n]*\n(.*?)^ *\1 *$", re.M | re.S)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@functools.cache
def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def blocks_of(page: Path, language: str) -> list[str]:
    return [found[3] for found in _FENCED.finditer(text_of(page)) if found[2] == language]


def prose_of(page: Path) -> str:
    """The page without its blocks of code, and what stands before it for the site."""
    return re.sub(r"\A---\n.*?^---\n", "", _FENCED.sub("", text_of(page)), flags=re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_python_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a page may save a run
    blocks = blocks_of(page, "python")
    names: dict[str, Any] = {"__name__": "docs"}
    exec(compile("\n".join(blocks), page.name, "exec"), names)


def test_python_that_is_not_run_is_python_and_there_is_a_reason() -> None:
    pages = [page for page in LINKED if blocks_of(page, "py")]
    for page in pages:
        for block in blocks_of(page, "py"):
            compile(block, page.name, "exec")
    assert {name_of(page) for page in pages} == NOT_RUN.keys()


def slugs_of(page: Path) -> Iterator[str]:
    """The anchors of a page, as code hosts and the site make them of its headings."""
    seen: dict[str, int] = {}
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", prose_of(page), re.M):
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")
        count = seen.get(slug, 0)
        seen[slug] = count + 1
        yield f"{slug}-{count}" if count else slug
    yield from re.findall(r"<a (?:id|name)=\"([^\"]+)\"", prose_of(page))


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_its_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)", prose_of(page)):
        if re.match(r"[a-z][a-z+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        if page.name == "index.md" and path.startswith(MADE_BY_THE_SITE):
            continue
        there = page.parent / path if path else page
        assert there.exists(), target
        if anchor and there.suffix == ".md":
            assert anchor in set(slugs_of(there)), target


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_its_lists_are_lists_to_every_reader_of_markdown(page: Path) -> None:
    # Code hosts are lenient, the site's Markdown is not: a list begins behind an empty line,
    # and one within an item is indented by four.
    before = ""
    for line in prose_of(page).splitlines():
        item = re.match(r"( *)([-*+]|\d+\.) +\S", line)
        if item:
            is_within = bool(re.match(r"( *)([-*+]|\d+\.) ", before)) or before.startswith("  ")
            assert not before.strip() or is_within, f"no empty line before: {line}"
            assert len(item[1]) % 4 == 0, f"indented by {len(item[1])}: {line}"
        before = line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_it_has_one_title(page: Path) -> None:
    assert len(re.findall(r"^# ", prose_of(page), re.M)) == 1


def test_the_file_shown_to_contributors_is_the_one_there_is() -> None:
    shown = text_of(ROOT / "CONTRIBUTING.md")
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
