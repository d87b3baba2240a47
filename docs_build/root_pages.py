"""Pages of the files at the repository's root: how to contribute, what changed, security."""

from __future__ import annotations

from pathlib import PurePosixPath

from docs_build import links


def files() -> dict[str, str | bytes]:
    """Return the pages."""
    pages: dict[str, str | bytes] = {}
    for name in ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"):
        text = (links.ROOT / name).read_text(encoding="utf-8")
        place = links.AT_THE_ROOT[name]
        pages[place] = links.in_site(text, PurePosixPath(name), place)
    return pages
