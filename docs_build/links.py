"""Links between files of the repository, as links between pages of the site.

In docs/ a link such as ``../examples/own_rule.py`` is right on a code host. The site has a page in
its place: of an example, of a file at the root, or one that shows the file as it is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
# What is a page of its own under another name.
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples": "examples/index.md",
    "examples/README.md": "examples/index.md",
    "examples/notebooks": "examples/index.md",
}
_FENCED = re.compile(r"(^ *(`{3,}|~{3,}).*?^ *\2 *$)", re.M | re.S)
_LINK = re.compile(r"(\]\()([^)\s]+)((?:\s+\"[^\"]*\")?\))")


def in_site(markdown: str, origin: PurePosixPath, place: str | None = None) -> str:
    """Return a page with its links turned to where the site has what they point to.

    Args:
        markdown: the page, as it stands in the repository.
        origin: its path in the repository.
        place: its path in the site's source; by default that of ``origin`` within docs/.
    """
    here = PurePosixPath(place or origin.relative_to("docs"))

    def turned(found: re.Match[str]) -> str:
        opening, target, closing = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or _is_elsewhere(path):
            return found[0]
        page = page_of(_resolved(origin, path))
        return f"{opening}{os.path.relpath(page, here.parent)}{mark}{anchor}{closing}"

    return "".join(
        piece if piece.lstrip().startswith(("```", "~~~")) else _LINK.sub(turned, piece)
        for piece in _pieces(markdown)
    )


def targets(markdown: str, origin: PurePosixPath) -> Iterator[str]:
    """Give the paths in the repository that a page links to."""
    for piece in _pieces(markdown):
        if not piece.lstrip().startswith(("```", "~~~")):
            for found in _LINK.finditer(piece):
                path = found[2].partition("#")[0]
                if path and not _is_elsewhere(path):
                    yield _resolved(origin, path)


def page_of(path: str) -> str:
    """Return where the site has a file of the repository."""
    if path in AT_THE_ROOT:
        return AT_THE_ROOT[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("examples/") and path.endswith((".py", ".ipynb")):
        return str(PurePosixPath(path).with_suffix(".md"))
    return f"files/{path}.md"


def _pieces(markdown: str) -> Iterator[str]:
    """Give the text between fenced blocks, and these, in their order."""
    end = 0
    for block in _FENCED.finditer(markdown):
        yield markdown[end : block.start()]
        yield block[0]
        end = block.end()
    yield markdown[end:]


def _is_elsewhere(path: str) -> bool:
    return bool(re.match(r"[a-z][a-z+.-]*:|//", path))


def _resolved(origin: PurePosixPath, path: str) -> str:
    return os.path.normpath(origin.parent / path)
