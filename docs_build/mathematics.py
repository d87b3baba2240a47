"""Formulas as MathML, made while the site is built: nothing is left for a script to do."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Sequence
from html import escape

from latex2mathml.converter import convert

_OUTER = re.compile(r"^<math[^>]*>(.*)</math>$", re.S)
_WORD = re.compile("[A-Za-z]{2,}")
# What has its parts side by side, and what has a base and others beside it.
_ROWS = ("math", "mrow", "mtd", "msqrt", "mstyle")
_SCRIPTS = ("msub", "msup", "msubsup", "munder", "mover", "munderover")
_CLOSING = (")", "]", "}", "\u27e9", "\u2016", "\u2225", "|", "\u2223", "\u230b")
_SIGNS = ("-", "\u2212", "+")
_PRIME = "\u2032"


def inline(latex: str) -> str:
    """Return a formula that stands in a line of text."""
    return f'<math xmlns="http://www.w3.org/1998/Math/MathML">{_inner(latex)}</math>'


def aligned(lines: Sequence[str]) -> str:
    """Return equations below each other, each with ``&=`` where they are aligned.

    What is wider than the page scrolls in a box of its own (docs/assets/site.css), which browsers
    let the keyboard reach only where there is something to scroll.
    """
    rows = []
    for line in lines:
        left, _, right = line.partition(" &= ")
        cells = (_inner(left), "<mo>=</mo>", _inner(right))
        rows.append(f"<mtr>{''.join(f'<mtd>{cell}</mtd>' for cell in cells)}</mtr>")
    table = f'<mtable displaystyle="true">{"".join(rows)}</mtable>'
    return (
        '<div class="formula" data-search-exclude>'
        f'<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">{table}</math></div>'
    )


def source(lines: Sequence[str]) -> str:
    """Return the LaTeX of equations, to be copied."""
    rows = " \\\\\n".join(lines)
    text = f"\\begin{{aligned}}\n{rows}\n\\end{{aligned}}"
    return (
        "<details data-search-exclude><summary>LaTeX</summary>"
        f"<pre><code>{escape(text)}</code></pre></details>"
    )


def _inner(latex: str) -> str:
    found = _OUTER.match(convert(latex))
    assert found is not None
    inside = found[1].replace("<mtable>", '<mtable displaystyle="true">')  # cases, not too small
    inside = inside.replace('<mtd columnalign="left">', "<mtd>").replace("\\_", "_")
    return _set(inside.replace("\n", " "))


def _set(inside: str) -> str:
    """Return MathML with words, signs and primes set as they are by TeX."""
    root = ET.fromstring(f"<math>{inside}</math>")
    for element in root.iter():
        # Words are identifiers: operators would stand in the middle of too much space.
        if element.tag == "mo" and _WORD.fullmatch(element.text or ""):
            element.tag = "mi"
        if element.tag in ("msup", "msubsup"):
            _put_prime_into_letter(element)
    for element in root.iter():
        if element.tag in _ROWS:
            element[:] = _spaced([*element])
    return "".join(ET.tostring(child, encoding="unicode") for child in root)


def _put_prime_into_letter(element: ET.Element) -> None:
    """Make a letter and its prime one identifier: as a script a prime is tiny, and too high."""
    base, *others = element
    letter = _italic(base.text or "") if base.tag == "mi" else None
    if letter and "".join(others[-1].itertext()) == _PRIME:
        if len(others) > 1:
            base.text = letter + _PRIME
            element.tag, element[:] = "msub", [base, others[0]]
        else:
            element.tag, element.text, element[:] = "mi", letter + _PRIME, []


def _italic(letter: str) -> str | None:
    """Return a letter as identifiers of one letter are shown; longer ones are upright."""
    if letter == "h":
        return "\u210e"
    for first, last, italic in (
        ("a", "z", 0x1D44E),
        ("A", "Z", 0x1D434),
        ("\u03b1", "\u03c9", 0x1D6FC),
    ):
        if len(letter) == 1 and first <= letter <= last:
            return chr(italic + ord(letter) - ord(first))
    return None


def _spaced(row: list[ET.Element]) -> Iterator[ET.Element]:
    """Give a row with space before words that are multiplied, and signs that belong to a number."""
    before: ET.Element | None = None
    for element in row:
        ends_operand = before is not None and _ends_operand(before)
        if ends_operand and _is_word(element):
            yield ET.Element("mspace", width="0.1667em")
        if element.tag == "mo" and element.text in _SIGNS and not ends_operand:
            element.set("form", "prefix")
        yield element
        before = element


def _ends_operand(element: ET.Element) -> bool:
    if element.tag == "mo":
        form = element.get("form")
        return form == "postfix" if form else element.text in _CLOSING
    return element.tag not in ("mspace", "mtext")


def _is_word(element: ET.Element) -> bool:
    base = element[0] if element.tag in _SCRIPTS else element
    return base.tag == "mi" and _WORD.fullmatch(base.text or "") is not None
