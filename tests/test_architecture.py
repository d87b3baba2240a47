"""Imports point one way; what costs time to import is imported only when used."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import steprule
from steprule.engines import registry

ROOT = Path(steprule.__file__).parent

# The rooms from the ground up: each imports from itself and from those before it alone.
FLOORS = (
    (
        "schedules",
        "drop_in",
        "ops.py",
        "distributed",
        "cached.py",
        "language/names.py",
        "language/rule.py",
    ),
    ("language", "matrix_ops"),
    ("formats",),
    ("engines", "state", "checkpoints"),
    ("planning",),
    ("optimizer",),
    ("lr_scheduler",),
    ("quasi_newton", "picture.py", "plotting.py", "swa_utils.py", "training", "wrappers"),
    ("rules",),
    ("warming", "problems", "model_groups", "range_test", "step_log", "doctor", "formulas"),
    ("bench", "cli"),
    ("__main__.py",),
)
# What some rooms do without, although it lies below them.
FORBIDDEN = {
    "ops.py": ("torch", "numpy", "steprule"),
    "language": ("torch", "numpy", "steprule.schedules"),
    "rules": ("steprule.engines", "steprule.planning", "steprule.formats", "llvmlite"),
    "formats": ("steprule.language", "steprule.ops", "steprule.schedules"),
    "state": ("steprule.engines",),
    "schedules": ("torch",),
}


def modules() -> dict[str, Path]:
    """Every module of the package, by name; packages by their own."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = [*file.relative_to(ROOT.parent).with_suffix("").parts]
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return found


MODULES = modules()


def imported_by(file: Path) -> set[str]:
    """What a file imports, at its top level or within functions; of a package, its modules.

    A module named in a string, to be loaded later (``"steprule.engines.cpu.engine:CpuEngine"``),
    counts as well.
    """
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                found.add(module if module in MODULES else node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            module = node.value.partition(":")[0]
            if module in MODULES and ":" in node.value:
                found.add(module)
    return found


def lies_in(module: str, room: str) -> bool:
    name = "steprule." + room.removesuffix(".py").replace("/", ".")
    return module == name or module.startswith(name + ".")


def files_of(room: str) -> list[Path]:
    place = ROOT / room
    return sorted(place.rglob("*.py")) if place.is_dir() else [place]


@pytest.mark.parametrize("floor", range(len(FLOORS)), ids=lambda i: "+".join(FLOORS[i]))
def test_imports_point_one_way(floor: int) -> None:
    above = [room for rooms in FLOORS[floor + 1 :] for room in rooms]
    below = [room for rooms in FLOORS[: floor + 1] for room in rooms]
    for room in FLOORS[floor]:
        for file in files_of(room):
            for module in imported_by(file):
                goes_up = any(lies_in(module, other) for other in above)
                is_below = any(lies_in(module, other) for other in below)
                assert is_below or not goes_up, f"{file.relative_to(ROOT)} imports {module}"


@pytest.mark.parametrize("room", FORBIDDEN)
def test_rooms_do_without(room: str) -> None:
    for file in files_of(room):
        for module in imported_by(file):
            for forbidden in FORBIDDEN[room]:
                reaches = module == forbidden or module.startswith(forbidden + ".")
                assert not reaches, f"{file.relative_to(ROOT)} imports {module}"


def test_every_room_has_a_floor() -> None:
    rooms = {room.partition("/")[0] for floor in FLOORS for room in floor}
    found = {p.name for p in ROOT.iterdir() if p.is_dir() or p.suffix == ".py"}
    assert found - {"__init__.py", "__pycache__"} == rooms


def test_there_are_no_import_circles() -> None:
    """Lazy imports count. Loading any module loads the root, which is no arrow."""
    graph = {name: imported_by(file) & MODULES.keys() for name, file in MODULES.items()}
    for name, needs in graph.items():
        needs -= {name, "steprule"}
    graphlib.TopologicalSorter(graph).prepare()  # raises, and names the circle


def test_nothing_outside_imports_from_inside_an_engines_folder() -> None:
    folders = {entry.where.rsplit(".", 1)[0] for entry in registry.entries()}
    assert len(folders) == len(registry.entries())
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] != "engines":
            for module in imported_by(file):
                reaches = any(module == f or module.startswith(f + ".") for f in folders)
                assert not reaches, f"{file.relative_to(ROOT)} imports {module}"


def test_the_planner_knows_no_engine_by_name() -> None:
    """Nor does what engines share."""
    names = [entry.where.rsplit(".", 1)[0] for entry in registry.entries()]
    shared = [f for f in (ROOT / "engines").glob("*.py") if f.name != "registry.py"]
    for file in [*files_of("planning"), *shared]:
        for module in imported_by(file):
            assert not any(module.startswith(name) for name in names), f"{file} imports {module}"


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
