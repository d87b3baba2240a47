"""Pages that show a file of the repository as it is: those that pages link to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from docs_build import links

_LANGUAGES = {".py": "python", ".sh": "bash", ".toml": "toml", ".json": "json", ".yml": "yaml"}


def files() -> dict[str, str | bytes]:
    """Return a page for each file that is linked to and has none of its own."""
    return {
        page: _page(path)
        for path in sorted(set(_linked()))
        if (page := links.page_of(path)).startswith("files/") and (links.ROOT / path).is_file()
    }


def _linked() -> Iterator[str]:
    sources = [*(links.ROOT / "docs").rglob("*.md"), *(links.ROOT / "examples").glob("*.md")]
    for source in [*sources, *(links.ROOT / name for name in links.AT_THE_ROOT)]:
        if source.is_file() and source.name != "README.md":
            origin = PurePosixPath(source.relative_to(links.ROOT).as_posix())
            yield from links.targets(source.read_text(encoding="utf-8"), origin)


def _page(path: str) -> str:
    text = (links.ROOT / path).read_text(encoding="utf-8")
    suffix = Path(path).suffix
    language = _LANGUAGES.get(suffix) or ("bash" if text.startswith("#!") else "text")
    return f"# {path}\n\n{fenced(text, language)}\n"


def fenced(text: str, language: str, title: str = "") -> str:
    """Return text as a block of code, whatever fences it holds."""
    fence = "`" * (4 if "```" in text else 3)
    heading = f' title="{title}"' if title else ""
    return f"{fence}{language}{heading}\n{text.rstrip()}\n{fence}"
