"""Looking into a written page."""

from __future__ import annotations

from html.parser import HTMLParser


class Links(HTMLParser):
    """Collects what a page refers to and the ids and tags it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.references: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "action"):
                self.references.append(value or "")
            if name == "id":
                self.ids.append(value or "")
