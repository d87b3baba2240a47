"""All generated pages: what the modules ``docs_build/*_pages.py`` give."""

from __future__ import annotations

import html
import importlib
import re
from pathlib import Path

from docs_build.public_names import optimizers, page_of_optimizer


def contents() -> dict[str, str | bytes]:
    """Return what is generated: a path in the site's source for each, and its content."""
    found: dict[str, str | bytes] = {}
    for path in sorted(Path(__file__).parent.glob("*_pages.py")):
        made = importlib.import_module(f"docs_build.{path.stem}").files()
        if twice := found.keys() & made.keys():
            raise ValueError(f"{path.name} makes {sorted(twice)}, which another module has made")
        found.update(made)
    return found


def with_anchors(pages: dict[str, str | bytes]) -> dict[str, str | bytes]:
    """Return the pages with each optimizer's name as the anchor of its page's heading."""
    anchored = dict(pages)
    for public in optimizers():
        page = page_of_optimizer(public.thing)
        if page in pages:
            heading = f"# {public.short} {{ #{public.anchor} }}"
            anchored[page] = re.sub(r"^# .*$", heading, str(pages[page]), count=1, flags=re.M)
    return anchored


def title_of(markdown: str) -> str:
    """Return a page's first heading, without attributes or code marks."""
    found = re.search(r"^# (.*?)(?: *\{.*\})?$", markdown, re.M)
    return found[1].replace("`", "") if found else "?"


def description_of(markdown: str) -> str:
    """Return the beginning of a page's first paragraph, up to 200 characters."""
    for block in re.split(r"\n\s*\n", markdown):
        if re.match(r"\s*(#|```|<|\||[-*>!] |---|$)", block):
            continue
        words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", block)
        text = html.unescape(" ".join(re.sub(r"[`*\\]|\{ [.#][^}]*\}", "", words).split()))
        return text if len(text) <= 200 else text[:197].rsplit(" ", 1)[0].rstrip(",;:.") + "…"
    return ""
