"""What mkdocs calls while it builds: generated pages are added, links out of docs/ rewritten."""

# ruff: noqa: ARG001  # mkdocs passes arguments by name

from __future__ import annotations

import json
import os
import sys
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
if str(ROOT) not in sys.path:  # mkdocs runs this file by its path, not as part of the package
    sys.path.insert(0, str(ROOT))

from docs_build import error_rows, generated, heads, links  # noqa: E402
from steprule.rules import OPTIMIZERS  # noqa: E402

_contents: dict[str, str | bytes] = {}
_error_rows: list[dict[str, Any]] = []


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Make the generated pages, and list the optimizers' in the navigation."""
    _contents.clear()
    _contents.update(generated.with_anchors(generated.contents()))
    config.nav = _with_generated(config.nav or [])
    return config


def _with_generated(nav: list[Any]) -> list[Any]:
    """Return the navigation with the pages of a folder behind an entry named like it."""
    pages = [path for path in _contents if path.startswith("optimizers/") and path.endswith(".md")]
    listed = [{title: path} for title, path in sorted(map(_title_and_path, pages), key=_by_title)]
    return [
        {"Optimizers": [*entry["Optimizers"], *listed]} if "Optimizers" in entry else entry
        for entry in nav
    ]


def _title_and_path(path: str) -> tuple[str, str]:
    return generated.title_of(str(_contents[path])), path


def _by_title(entry: tuple[str, str]) -> str:
    return entry[0].lower()


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages and pictures."""
    for path, content in _contents.items():
        files.append(File.generated(config, path, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that point out of docs/ to the page that shows what they point to."""
    if page.file.generated_by is None:
        markdown = links.in_site(markdown, PurePosixPath("docs", page.file.src_uri))
    if page.file.src_uri == "errors.md":
        _error_rows[:] = error_rows.entries(markdown)
        markdown = error_rows.with_anchors(markdown)
    for name, found in (("title", heads.title), ("description", heads.description)):
        page.meta[name] = found(page.file.src_uri, markdown, page.meta.get(name))
    return markdown


# By what search multiplies how well a page of a folder fits: guides answer, others have the words.
_WEIGHTS = {"reference": 0.7, "migrating": 0.5, "schedules": 0.7, "examples": 0.2}
# Likewise of pages that are no guides.
_OTHERS = {
    **dict.fromkeys(("architecture", "changelog", "contributing", "releasing"), 0.3),
    **dict.fromkeys(("article", "errors", "peers", "optimizers"), 0.5),
}


def weight_in_search(entry: dict[str, Any]) -> float:
    """Return by what search multiplies how well an entry of its index fits.

    Guides come first, then reference, then examples, which have everybody's words. What is typed
    may go on, so that Adamax fits "adam" as well as Adam does, and better by its length: the one
    whose name is all that was typed comes first. Messages come after pages, unless many of their
    words are typed, for which there must be many; those that list all options have everybody's.
    """
    page, _, anchor = entry["location"].partition("#")
    place = PurePosixPath(page)
    if page.startswith("optimizers/"):
        longer = [x for x in OPTIMIZERS if x != place.stem and x.startswith(place.stem)]
        return 1 if anchor else 2 + 2 * len(longer)
    if page == error_rows.PAGE and anchor.startswith("error-"):
        lists_options, is_long = entry["title"].count(",") >= 8, len(entry["title"].split()) >= 9
        return 0.1 if lists_options else 0.6 if is_long else 0.35
    folder = place.parts[0] if len(place.parts) > 1 else ""
    return _WEIGHTS[folder] if folder in _WEIGHTS else _OTHERS.get(place.stem, 1)


def on_post_build(config: MkDocsConfig) -> None:
    """Make each message of the page of errors a thing that search finds by itself.

    An optimizer's own page comes before those that mention it, and before messages.
    """
    index = Path(config.site_dir, "search", "search_index.json")
    found = json.loads(index.read_text(encoding="utf-8"))
    found["docs"] = error_rows.each_by_itself(found["docs"], _error_rows)
    # A word in a title counts for more, yet a message of several words must be found by them.
    found["config"]["fields"]["title"]["boost"] = 8
    for entry in found["docs"]:
        entry["boost"] = weight_in_search(entry)
    index.write_text(json.dumps(found, separators=(",", ":")), encoding="utf-8")


def on_serve(server: Any, config: MkDocsConfig, builder: Any) -> Any:
    """Watch what generated pages are made of."""
    for folder in ("examples", "docs_build"):
        server.watch(os.fspath(ROOT / folder))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        server.watch(os.fspath(ROOT / name))
    return server
