"""Checks a built site: that links within lead somewhere, and that nothing comes from elsewhere.

``python -m docs_build.built site`` prints how many pages there are and the links to other sites,
which are listed and not fetched; it ends with 1 where a check fails. mkdocs checks links in
Markdown as well; this also sees those of templates and of HTML in pages.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

# What a browser fetches by itself, and where the address stands.
_LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "embed": "src",
    "object": "data",
    "use": "href",
    "image": "href",
}
_META = {"charset", "content", "http-equiv", "name", "property"}
_LOADED_LINKS = {"stylesheet", "icon", "preload", "prefetch", "preconnect", "modulepreload"}


@dataclass
class BuiltPage:
    """What a page has and what it points to."""

    title: str = ""
    description: str = ""
    language: str = ""
    headings: list[str] = field(default_factory=list)
    anchors: set[str] = field(default_factory=set)
    links: set[str] = field(default_factory=set)
    loaded: set[str] = field(default_factory=set)
    pictures: list[tuple[str, str]] = field(default_factory=list)
    has_formula: bool = False
    # Attributes of <meta> that there are not: what follows a quotation mark that was not escaped.
    broken: set[str] = field(default_factory=set)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = BuiltPage()
        self._in: str | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        page = self.page
        if anchor := values.get("id") or (values.get("name") if tag == "a" else None):
            page.anchors.add(anchor)
        if tag in _LOADED and (address := values.get(_LOADED[tag])):
            page.loaded.add(address)
        if tag == "link" and set(values.get("rel", "").split()) & _LOADED_LINKS:
            page.loaded.add(values.get("href", ""))
        if tag == "a" and "href" in values:
            page.links.add(values["href"])
        if tag == "img":
            page.pictures.append((values.get("src", ""), values.get("alt", "")))
        if tag == "meta":
            page.broken |= values.keys() - _META
            if values.get("name") == "description":
                page.description = values.get("content", "")
        if tag == "html":
            page.language = values.get("lang", "")
        if tag == "math":
            page.has_formula = True
        if tag == "h1":
            page.headings.append("")
        if tag in ("title", "h1"):
            self._in = tag

    def handle_endtag(self, tag: str) -> None:
        if tag == self._in:
            self._in = None

    def handle_data(self, data: str) -> None:
        if self._in == "title" and not self.page.headings:  # pictures have titles of their own
            self.page.title += data
        elif self._in == "h1":
            self.page.headings[-1] += data


def read_site(folder: Path) -> dict[str, BuiltPage]:
    """Return the pages of a built site, by their paths in it."""
    pages = {}
    for path in sorted(folder.rglob("*.html")):
        reader = _Reader()
        reader.feed(path.read_text(encoding="utf-8"))
        pages[path.relative_to(folder).as_posix()] = reader.page
    return pages


def faults_of(folder: Path, pages: dict[str, BuiltPage]) -> list[str]:
    """Return what is wrong, a line each: dead links, missing anchors, what comes from elsewhere."""
    faults = []
    for name, page in pages.items():
        faults += [f"{name}: a <meta> has {attribute!r}" for attribute in sorted(page.broken)]
        for address in sorted(page.links | page.loaded):
            is_loaded = address in page.loaded
            if _is_elsewhere(address):
                if is_loaded and not address.startswith("data:"):
                    faults.append(f"{name}: loads {address}")
            elif fault := _fault_of(folder, pages, name, address):
                faults.append(f"{name}: {address}: {fault}")
    for sheet in sorted(folder.rglob("*.css")):
        addresses = re.findall(r"url\(\s*[\"']?([^\"')]+)", sheet.read_text(encoding="utf-8"))
        faults += [
            f"{sheet.relative_to(folder)}: loads {address}"
            for address in addresses
            if _is_elsewhere(address) and not address.startswith("data:")
        ]
    return faults


def _is_elsewhere(address: str) -> bool:
    parts = urlsplit(address)
    return bool(parts.scheme or parts.netloc)


def _fault_of(folder: Path, pages: dict[str, BuiltPage], name: str, address: str) -> str | None:
    parts = urlsplit(address)
    path = unquote(parts.path)
    if name == "404.html":  # served at any address, so that it counts from the site's root
        path = path.lstrip("/")
    target = (folder / name).parent / path if path else folder / name
    if target.is_dir():
        target = target / "index.html"
    try:
        found = target.resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return "leads out of the site"
    if not target.is_file():
        return "there is no such file"
    anchor = unquote(parts.fragment)
    if anchor and found in pages and anchor not in pages[found].anchors and anchor != "__toc":
        return "there is no such anchor"
    return None


def links_elsewhere(pages: dict[str, BuiltPage]) -> dict[str, list[str]]:
    """Return the links to other sites, each with the pages that have it."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, page in pages.items():
        for address in page.links:
            if urlsplit(address).scheme in ("http", "https"):
                found[address].append(name)
    return dict(sorted(found.items()))


def main(folder: Path) -> int:
    """Print what was found, and return 1 where a check fails."""
    pages = read_site(folder)
    faults = faults_of(folder, pages)
    elsewhere = links_elsewhere(pages)
    lines = [f"docs: {len(elsewhere)} links to other sites, which were not fetched:"]
    for address, names in elsewhere.items():
        count = f"{len(names)} pages" if len(names) > 1 else names[0]
        lines.append(f"  {address} ({count})")
    lines += [f"docs: fault: {fault}" for fault in faults]
    lines.append(f"docs: {len(pages)} pages in {folder}; {len(faults)} faults")
    sys.stdout.write("\n".join(lines) + "\n")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
