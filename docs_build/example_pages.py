"""A page for each example script and notebook, and the list of them."""

from __future__ import annotations

import ast
import base64
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

from docs_build import docstrings, links
from docs_build.file_pages import fenced
from docs_build.generated import title_of

FOLDER = links.ROOT / "examples"


def files() -> dict[str, str | bytes]:
    """Return the pages, and the pictures in notebooks."""
    pages: dict[str, str | bytes] = {}
    for script in sorted(FOLDER.glob("*.py")):
        pages[f"examples/{script.stem}.md"] = _page_of_script(script)
    for notebook in sorted(FOLDER.glob("notebooks/*.ipynb")):
        pages |= _page_of_notebook(notebook)
    pages["examples/index.md"] = _index()
    return pages


def _index() -> str:
    readme = FOLDER / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        return links.in_site(text, PurePosixPath("examples/README.md"), "examples/index.md")
    lines = ["# Examples", ""]
    lines += [
        f"- [{script.name}]({script.stem}.md): {_docstring(script).splitlines()[0]}"
        for script in sorted(FOLDER.glob("*.py"))
    ]
    return "\n".join(lines) + "\n"


def _docstring(script: Path) -> str:
    return ast.get_docstring(ast.parse(script.read_text(encoding="utf-8"))) or script.name


def _page_of_script(script: Path) -> str:
    text = script.read_text(encoding="utf-8")
    words = docstrings.markdown(_docstring(script), lambda _: None)
    code = fenced(text, "python", f"examples/{script.name}")
    return f"# {script.name}\n\n{words}\n{code}\n\nBack to [all examples](index.md).\n"


def _page_of_notebook(path: Path) -> dict[str, str | bytes]:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    made: dict[str, str | bytes] = {}
    parts: list[str] = []
    origin = PurePosixPath(path.relative_to(links.ROOT).as_posix())
    place = str(origin.with_suffix(".md"))
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(links.in_site(source, origin, place))
        elif cell["cell_type"] == "code" and source.strip():
            parts.append(fenced(source, "python"))
            for output in cell["outputs"]:
                parts += _shown(output, path.stem, made)
    text = "\n\n".join(parts) + "\n"
    if not re.search(r"^# ", text, re.M):
        text = f"# {path.stem}\n\n{text}"
    # A guide may have the same heading; the browser's title tells them apart.
    title = f"{title_of(text)} (notebook)"
    return {place: f'---\ntitle: "{title}"\n---\n\n{text}', **made}


def _shown(output: dict[str, Any], name: str, made: dict[str, str | bytes]) -> list[str]:
    """Return an output as Markdown; a picture is added to what is made."""
    data = output.get("data", {})
    if "image/png" in data:
        picture = f"{name}_{len(made) + 1}.png"
        made[f"examples/notebooks/{picture}"] = base64.b64decode("".join(data["image/png"]))
        words = "".join(data.get("text/plain", "")).strip("<>") or "figure"
        return [f"![Output: {words}]({picture})"]
    text = "".join(output.get("text", data.get("text/plain", "")))
    if output["output_type"] == "error":
        text = f"{output['ename']}: {output['evalue']}"
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return [fenced(text, "text")] if text.strip() else []
