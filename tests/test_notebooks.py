"""The notebooks run from top to bottom, and are kept with the outputs of their present cells."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NAMES = ("first_hour", "choosing_an_optimizer")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("nbclient")


def builder() -> Any:
    """The program that script/notebooks runs."""
    spec = importlib.util.spec_from_file_location("notebook_builder", FOLDER / "build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds(cell: Any) -> list[str]:
    """What a cell shows, without what may differ from run to run: how a text comes in pieces."""
    found = []
    for output in cell.outputs:
        assert output.output_type != "error"
        kind = "png" if "image/png" in output.get("data", {}) else output.output_type
        if kind != "stream" or "stream" not in found[-1:]:
            found.append(kind)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_what_is_kept_is_what_a_run_shows(name: str) -> None:
    kept = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(kept)
    made = builder().read(name)
    assert [(c.cell_type, c.source) for c in kept.cells] == [
        (c.cell_type, c.source) for c in made.cells
    ], "run script/notebooks"

    builder().run(made)
    code = [pair for pair in zip(kept.cells, made.cells, strict=True) if "outputs" in pair[0]]
    assert all(one.execution_count == count for count, (one, _) in enumerate(code, start=1))
    assert [kinds(one) for one, _ in code] == [kinds(other) for _, other in code]
    assert [kinds(one) for one, _ in code].count([]) < len(code) / 3


@pytest.mark.parametrize("name", NAMES)
def test_it_is_small_and_names_no_machine(name: str) -> None:
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 300_000
    assert "image/png" in text
    without_pictures = re.sub(r'"image/png": "[^"]*"', "", text)
    assert not re.search(r"/(?:home|root|tmp|usr|work|opt)/", without_pictures)
