"""Docstrings: their sections, what these name, and all of it as Markdown."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Iterator

# A section's heading stands at the left margin; what belongs to it is indented, or goes on behind
# the colon until the next empty line.
_SECTION = re.compile(
    r"^((?:Args|Attributes|Returns|Raises|Yields|Warns|Example|Examples|State|Groups|Memory|Source"
    r"|When to use|Note)(?:, [^:]*)?):(?: (.*))?$"
)
# Whose text goes on behind the name.
_RUNNING = ("Source", "When to use", "State", "Groups", "Memory", "Returns", "Note")
_NAMED = ("Args", "Attributes", "Raises", "Warns")
_ITEM = re.compile(r"^(\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*): (.*)$")
_TITLES = {"Args": "Arguments", "Example": "Example", "Examples": "Examples"}
_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?([^`]+)`")
_CODE = re.compile(r"(``.+?``|`[^`\n]+`)", re.S)

# From a dotted name to its address, as Markdown wants it, or None.
Address = Callable[[str], "str | None"]


def markdown(docstring: str, address: Address) -> str:
    """Return a docstring, already dedented, as Markdown.

    Args:
        docstring: as ``inspect.getdoc`` gives it.
        address: where a name is described that the docstring refers to.
    """
    lines: list[str] = []
    for name, body in sections(docstring):
        kind = name.partition(",")[0]
        if lines and lines[-1].strip():
            lines.append("")
        if not name:
            lines += _blocks(body, address)
        elif name in _NAMED and any(_ITEM.match(line) for line in body):
            lines += [f"**{_TITLES.get(name, name)}**{{ .section }}", "", *_items(body, address)]
        elif kind in (*_RUNNING, *_NAMED):
            first, *rest = body
            paragraphs = [f"**{_TITLES.get(name, name)}:** {first}", *rest]
            lines += _blocks(paragraphs, address)
        else:
            lines += [f"**{_TITLES.get(name, name)}**{{ .section }}", "", *_blocks(body, address)]
    return "\n".join(lines).rstrip() + "\n"


def sections(docstring: str) -> Iterator[tuple[str, list[str]]]:
    """Give each section's name and its lines, without indentation; text in between has no name.

    A name may say more behind a comma, as "State, made with the optimizer".
    """
    name, is_indented = "", False
    body: list[str] = []
    for line in docstring.splitlines():
        heading = _SECTION.match(line)
        ends = name and not heading and line[:1].strip() and (is_indented or not body[-1].strip())
        if heading or ends:
            if any(part.strip() for part in body):
                yield name, _dedented(body)
            name, body = (heading[1], [heading[2]] if heading[2] else []) if heading else ("", [])
            is_indented = bool(heading and not heading[2])
            if heading:
                continue
        body.append(line)
    if any(part.strip() for part in body):
        yield name, _dedented(body)


def _dedented(lines: list[str]) -> list[str]:
    """Return lines without the indentation that all have; of the first, where it stood alone."""
    first, *rest = lines
    if first[:1].strip():
        return [first, *textwrap.dedent("\n".join(rest)).splitlines()]
    return textwrap.dedent("\n".join(lines)).strip("\n").splitlines()


def items(lines: list[str]) -> Iterator[tuple[str, list[str]]]:
    """Give the names and the words of each ``name: meaning``; remarks on all have no name."""
    names, words = "", list[str]()
    for line in lines:
        named = _ITEM.match(line)
        if not named and names and (not line.strip() or line.startswith(" ")):
            words.append(line)
            continue
        if names:
            yield names, _dedented(words)
            names = ""
        if named:
            names, words = named[1], [named[2]]
        else:
            yield "", [line]
    if names:
        yield names, _dedented(words)


def paragraphs(lines: list[str]) -> list[str]:
    """Return the paragraphs of text, each in one line, without literal blocks and examples."""
    found = "\n".join(lines).split("\n\n")
    kept = [p for p in found if p.strip() and not p.startswith(("    ", ">>> "))]
    return [" ".join(re.sub(r"\s*::$", ":", p.strip()).split()) for p in kept if p.strip() != "::"]


def _items(lines: list[str], address: Address) -> list[str]:
    """Return ``name: meaning`` lines as a definition list."""
    made: list[str] = []
    for names, words in items(lines):
        if names:
            coded = ", ".join(f"`{name}`" for name in names.split(", "))
            made.extend([coded, *_hanging(_blocks(words, address)), ""])
        else:
            made += _blocks(words, address)
    return made


def _hanging(lines: list[str]) -> list[str]:
    return [
        f":   {line}" if number == 0 else (f"    {line}" if line.strip() else "")
        for number, line in enumerate(lines)
    ]


def _blocks(lines: list[str], address: Address) -> list[str]:
    """Return paragraphs, lists, literal blocks and doctests."""
    made: list[str] = []
    number = 0
    while number < len(lines):
        line = lines[number]
        if not line.strip():
            made.append("")
            number += 1
        elif line.lstrip().startswith(">>> "):
            end = _until(lines, number, lambda text: not text.strip())
            code = textwrap.dedent("\n".join(lines[number:end])).splitlines()
            made += ["```pycon", *code, "```", ""]
            number = end
        elif line.rstrip().endswith("::"):
            if before := line.rstrip()[:-2].rstrip():
                made += [*_prose([f"{before}:"], address), ""]
            end = _until(
                lines, number + 1, lambda text: bool(text.strip()) and not text.startswith(" ")
            )
            made += ["", *_literal(lines[number + 1 : end])]
            number = end
        elif line.startswith("    ") and not _is_in_list(made):
            end = _until(
                lines, number, lambda text: bool(text.strip()) and not text.startswith(" ")
            )
            made += _literal(lines[number:end])
            number = end
        elif re.match(r"(-|\d+\.) ", line):
            if made and made[-1].strip() and not re.match(r"(-|\d+\.|  ) ?", made[-1]):
                made.append("")
            made += _prose([line], address)
            number += 1
        else:
            end = _until(
                lines,
                number + 1,
                lambda text: (
                    bool(re.match(r"\s*(>>> |$)|(-|\d+\.) ", text)) or text.rstrip().endswith("::")
                ),
            )
            made += _prose(lines[number:end], address)
            number = end
    return made


def _is_in_list(made: list[str]) -> bool:
    """Say whether what follows goes on with an item, and with a paragraph otherwise."""
    before = next((line for line in reversed(made) if line.strip()), "")
    return bool(made and made[-1].strip()) or before.startswith(("- ", " "))


def _until(lines: list[str], start: int, is_end: Callable[[str], bool]) -> int:
    return next((at for at in range(start, len(lines)) if is_end(lines[at])), len(lines))


def _literal(lines: list[str]) -> list[str]:
    code = textwrap.dedent("\n".join(lines)).strip("\n")
    return [f"```{_language(code)}", *code.splitlines(), "```", ""]


def _language(code: str) -> str:
    is_python = re.search(
        r"^(import|from|def|class|with|@)\b|optimizer.* = |steprule\.", code, re.M
    )
    return "python" if is_python else "text"


def _prose(lines: list[str], address: Address) -> list[str]:
    return prose("\n".join(lines), address).splitlines()


def prose(words: str, address: Address) -> str:
    """Return text with references as links, and with what Markdown would take amiss escaped.

    Pages that it names, as docs/guards.md, are links, of a page in a folder of the site.
    """

    def linked(found: re.Match[str]) -> str:
        shown = f"`{found[1].rpartition('.')[2] if '~' in found[0] else found[1]}`"
        place = address(found[1])
        return f"[{shown}]({place})" if place else shown

    pieces = _CODE.split(_ROLE.sub(linked, words))
    for at in range(0, len(pieces), 2):
        piece = re.sub(r"(?<=[\w)])(\*{1,2})(?=[\w(-])", _escaped, pieces[at])
        piece = re.sub(r"<(?=[\w/!])", "&lt;", piece)
        pieces[at] = re.sub(r"(?<![`\w/\[])docs/([\w/-]+)\.md", _page, piece)
    return "".join(pieces)


def _escaped(stars: re.Match[str]) -> str:
    return stars[1].replace("*", "\\*")


def _page(found: re.Match[str]) -> str:
    return f"[docs/{found[1]}.md](../{found[1]}.md)"
