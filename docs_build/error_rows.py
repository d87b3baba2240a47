"""The page of errors, row by row: an anchor for each, and an entry of its own in the search.

Search weighs a word by how long the text round it is. In the page's long tables a message would be
lost among others; as an entry of its own it is found by its words.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Any

PAGE = "errors.html"
_ROW = re.compile(r"^\| (?=`)", re.M)
# Bars within code are no ends of cells.
_CELL = re.compile(r"((?:``.*?``|`[^`]*`|[^|`])+)\|")


def with_anchors(markdown: str) -> str:
    """Return the page with an anchor in the first cell of each row."""
    numbers = iter(range(1, 1 + len(_ROW.findall(markdown))))
    return _ROW.sub(lambda _: f'| <a id="error-{next(numbers)}"></a>', markdown)


def entries(markdown: str) -> list[dict[str, Any]]:
    """Return what search is to know of each row: its message by which it is found."""
    found = []
    for number, cells in enumerate(_rows(markdown), 1):
        *given, message, remedy = (html.escape(cell.replace("`", "").strip()) for cell in cells)
        text = f"<p>{', '.join(given)}</p><p>{remedy}</p>"
        found.append({"location": f"{PAGE}#error-{number}", "title": message, "text": text})
    return found


def each_by_itself(
    entries: list[dict[str, Any]], rows: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the search index's entries, with rows in the place of the tables that have them."""
    kept = [
        {**entry, "text": ""} if entry["location"].startswith(f"{PAGE}#") else entry
        for entry in entries
    ]
    return kept + rows


def _rows(markdown: str) -> Iterator[list[str]]:
    for line in markdown.splitlines():
        if _ROW.match(line):
            yield _CELL.findall(line[1:])
