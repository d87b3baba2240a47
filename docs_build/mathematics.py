"""Formulas as MathML, made while the site is built: nothing is left for a script to do."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

from latex2mathml.converter import convert

_OUTER = re.compile(r"^<math[^>]*>(.*)</math>$", re.S)
# Words are identifiers: operators would stand in the middle of too much space.
_WORD = re.compile(r"<mo>([A-Za-z]{2,})</mo>")


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
    inside = inside.replace('<mtd columnalign="left">', "<mtd>")
    return _WORD.sub(r"<mi>\1</mi>", inside).replace("\\_", "_").replace("\n", " ")
