"""How pages of the site are made: links, docstrings, signatures, messages, notebooks."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))  # what builds the site is no part of the package

from docs_build import (  # noqa: E402
    docstrings,
    error_rows,
    example_pages,
    generated,
    heads,
    hooks,
    links,
    signatures,
)


@pytest.mark.parametrize(
    ("origin", "link", "expected"),
    [
        ("docs/tour.md", "guards.md#clipping", "guards.md#clipping"),
        ("docs/migrating/torch.md", "../guards.md", "../guards.md"),
        ("docs/migrating/torch.md", "../../examples/own_rule.py", "../examples/own_rule.md"),
        ("docs/tour.md", "../examples/README.md", "examples/index.md"),
        ("docs/tour.md", "../README.md", "index.md"),
        ("docs/tour.md", "../CONTRIBUTING.md#add-a-format", "contributing.md#add-a-format"),
        ("docs/tour.md", "../tests/helpers.py", "files/tests/helpers.py.md"),
        ("docs/tour.md", "https://example.org/a.md", "https://example.org/a.md"),
        ("docs/tour.md", "#here", "#here"),
    ],
)
def test_a_link_leads_to_the_page_that_shows_the_file(
    origin: str, link: str, expected: str
) -> None:
    assert links.in_site(f"see [it]({link}).", PurePosixPath(origin)) == f"see [it]({expected})."


def test_links_of_a_file_at_the_root_count_from_its_page() -> None:
    turned = links.in_site("[a](docs/terms.md)", PurePosixPath("CHANGELOG.md"), "changelog.md")
    assert turned == "[a](terms.md)"


def test_what_is_fenced_is_no_link() -> None:
    code = "```python\nx = [a](../README.md)\n```\n"
    assert links.in_site(code, PurePosixPath("docs/tour.md")) == code


DOCSTRING = """Do it, as :func:`steprule.warm` does rows**2 times.

::

    param = param - lr * grad

Args:
    lr: learning rate
        (default 1e-3):

        - one of them;
    **options: all others, see :class:`~steprule.Unknown`.

    They are copied.

Example:
    >>> 1 + 1
    2

Raises:
    ValueError: ``lr`` is < 0.

Source: Somebody, "Something",
2019.
"""


def test_a_docstring_becomes_markdown() -> None:
    known = {"steprule.warm": "helpers.md#steprule.warm"}
    text = docstrings.markdown(DOCSTRING, known.get)
    assert "[`steprule.warm`](helpers.md#steprule.warm) does rows\\*\\*2 times." in text
    assert "```text\nparam = param - lr * grad\n```" in text
    assert "`lr`\n:   learning rate\n    (default 1e-3):" in text
    assert "\n    - one of them;" in text
    assert "`**options`\n:   all others, see `Unknown`." in text
    assert "\nThey are copied." in text
    assert "```pycon\n>>> 1 + 1\n2\n```" in text
    assert "`ValueError`\n:   ``lr`` is < 0." in text
    assert '**Source:** Somebody, "Something",\n2019.' in text


def function(a: int, /, b: float = 0.5, *, flag: bool = False, **c: int) -> list[int]:
    raise NotImplementedError


def test_a_signature_has_types_and_defaults() -> None:
    assert signatures.signature_of(function, "f") == (
        "f(a: int, /, b: float = 0.5, *, flag: bool = False, **c: int) -> list[int]"
    )
    lines = signatures.signature_of(function, "a_module.with_quite_a_long_name.f").splitlines()
    assert lines[0] == "a_module.with_quite_a_long_name.f("
    assert lines[-1] == ") -> list[int]"


ROWS = """# Errors

| of | argument | given | raised | what to do |
|---|---|---|---|---|
| `Adam` | lr | `` -1 `` | `` ValueError: lr | is <0 `` | Raise it. |
"""


def test_each_message_is_an_entry_of_the_search() -> None:
    assert '| <a id="error-1"></a>`Adam` | lr' in error_rows.with_anchors(ROWS)
    entry = {
        "location": "errors.html#error-1",
        "title": "ValueError: lr | is &lt;0",
        "text": "<p>Adam, lr, -1</p><p>Raise it.</p>",
    }
    assert error_rows.entries(ROWS) == [entry]
    tables = {"location": "errors.html#numbers", "title": "Numbers", "text": "all rows"}
    other = {"location": "tour.html#numbers", "title": "Numbers", "text": "words"}
    found = error_rows.each_by_itself([tables, other], [entry])
    assert found == [{**tables, "text": ""}, other, entry]


def test_heads_of_pages_are_safe_in_html() -> None:
    assert heads.description("a.md", '# A\n\nSay "a" < [`b`](c.md).\n', None) == (
        "Say &quot;a&quot; &lt; b."
    )
    assert "message" in heads.description("errors.md", "# A\n\nWritten by.\n", None)
    assert heads.title("a.md", "# `a` & b { #c }\n", None) == "a &amp; b"
    assert heads.title("a.md", "# A\n", "B") == "B"


def test_search_gives_the_exact_name_more_weight() -> None:
    def weight(location: str, title: str = "") -> float:
        return hooks.weight_in_search({"location": location, "title": title})

    assert weight("optimizers/adam.html") > weight("optimizers/adamw.html") > weight("tour.html")
    assert weight("guards.html") > weight("reference/rules.html") > weight("examples/gan.html")
    assert weight("guards.html") > weight("changelog.html")
    assert weight("tour.html") > weight("errors.html#error-1", "lr " * 9)
    assert weight("errors.html#error-2", "lr " * 9) > weight(
        "errors.html#error-1", "ValueError: lr"
    )
    assert weight("errors.html#error-1", "lr") > weight("errors.html#error-2", 9 * "lr, ")


def test_sections_items_and_paragraphs_of_a_docstring() -> None:
    text = (
        "First.\n\nState, at once: ``a`` (b).\n\nArgs:\n    x: one\n        two\n    y, z: three\n"
    )
    found = dict(docstrings.sections(text))
    assert list(found) == ["", "State, at once", "Args"]
    assert list(docstrings.items(found["Args"])) == [("x", ["one", "two"]), ("y, z", ["three"])]
    assert docstrings.paragraphs(["a", "b::", "", "    code", "", "c"]) == ["a b:", "c"]
    assert docstrings.prose("x**2 < y<z (docs/a.md)", lambda _: None) == (
        "x\\*\\*2 < y&lt;z ([docs/a.md](../a.md))"
    )


def test_a_description_is_the_first_paragraph() -> None:
    assert generated.description_of("# A\n\n```\ncode\n```\n\nWords `a` [b](c).\n") == "Words a b."
    long = generated.description_of(f"# A\n\n{'word ' * 60}")
    assert len(long) <= 200
    assert long.endswith("word…")


def test_a_notebook_becomes_a_page_with_its_outputs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = {"image/png": base64.b64encode(b"png").decode(), "text/plain": "<Figure 1>"}
    cells = [
        {"cell_type": "markdown", "source": ["# First\n", "[a](../README.md)"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [
                {"output_type": "stream", "text": ["\x1b[1m1\x1b[0m\n"]},
                {"output_type": "display_data", "data": picture},
            ],
        },
    ]
    folder = tmp_path / "examples" / "notebooks"
    folder.mkdir(parents=True)
    (folder / "first.ipynb").write_text(json.dumps({"cells": cells}))
    monkeypatch.setattr(links, "ROOT", tmp_path)
    monkeypatch.setattr(example_pages, "FOLDER", tmp_path / "examples")
    pages = example_pages.files()
    page = str(pages["examples/notebooks/first.md"])
    assert "# First\n[a](../index.md)" in page
    assert "```python\nprint(1)\n```\n\n```text\n1\n```" in page
    assert "![Output: Figure 1](first_1.png)" in page
    assert pages["examples/notebooks/first_1.png"] == b"png"
