"""Imports point one way; what costs time to import is imported only when used."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import steprule

ROOT = Path(steprule.__file__).parent

# What each room may not import, directly: arrows go rules -> optimizer -> plan -> engines ->
# recording, and nothing goes back.
FORBIDDEN = {
    "ops.py": ("torch", "numpy", "steprule"),
    "rule.py": ("torch", "numpy", "steprule.optimizer", "steprule.engines", "steprule.plan"),
    "recording.py": ("torch", "numpy", "steprule.engines", "steprule.optimizer", "steprule.rules"),
    "shared_terms.py": ("torch", "numpy", "steprule.engines", "steprule.optimizer"),
    "rules": ("steprule.engines", "steprule.plan", "steprule.formats", "llvmlite"),
    "formats": ("steprule.engines", "steprule.rule", "steprule.rules", "steprule.optimizer"),
    "engines": ("steprule.optimizer", "steprule.rules", "steprule.plan", "steprule.cli"),
    "settings.py": ("steprule.optimizer", "steprule.rules", "steprule.plan", "steprule.cli"),
    "plan.py": ("steprule.optimizer", "steprule.rules", "steprule.cli"),
    "optimizer.py": ("steprule.rules", "steprule.cli"),
    "schedules": ("torch", "steprule.optimizer", "steprule.lr_scheduler", "steprule.cli"),
}


def imported_by(file: Path) -> set[str]:
    """Modules that a file imports at its top level or within functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("room", FORBIDDEN)
def test_imports_point_one_way(room: str) -> None:
    place = ROOT / room
    files = sorted(place.rglob("*.py")) if place.is_dir() else [place]
    assert files
    for file in files:
        for module in imported_by(file):
            for forbidden in FORBIDDEN[room]:
                reaches = module == forbidden or module.startswith(forbidden + ".")
                allowed = room == "rules" and module == "steprule.rules"
                assert not reaches or allowed, f"{file.relative_to(ROOT)} imports {module}"


def test_only_the_command_line_imports_the_benchmark() -> None:
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] not in ("bench", "cli"):
            assert not any(module.startswith("steprule.bench") for module in imported_by(file))


def test_importing_steprule_is_light() -> None:
    heavy = "llvmlite", "matplotlib", "rich", "typer", "jinja2", "sklearn"
    script = f"import sys, steprule; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_torchs_update_functions_are_never_called() -> None:
    """torch.optim is imported for its classes and hooks alone."""
    for file in ROOT.rglob("*.py"):
        for module in imported_by(file):
            assert not module.startswith(("torch.optim.adam", "torch.optim.sgd", "torch.optim._"))
