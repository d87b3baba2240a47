"""The scripts at the front door, without installing anything."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted([*(ROOT / "script").iterdir(), ROOT / ".ci" / "run"])
NAMES = [str(path.relative_to(ROOT)) for path in SCRIPTS]


@pytest.mark.parametrize("path", SCRIPTS, ids=NAMES)
def test_is_an_executable_bash_script_that_parses(path: Path) -> None:
    assert os.access(path, os.X_OK)
    text = path.read_text()
    assert text.startswith("#!/usr/bin/env bash\n# ")
    assert "set -euo pipefail" in text
    subprocess.run(["bash", "-n", path], check=True)


@pytest.mark.parametrize("path", [*SCRIPTS, ROOT / "constraints.txt"], ids=lambda path: path.name)
def test_names_no_host_and_no_machine_path(path: Path) -> None:
    text = path.read_text().replace("/usr/bin/env", "").replace("/dev/null", "")
    assert not re.search(
        r"https?://|index-url|(?<![\w.$}\"])/(?:home|opt|root|tmp|usr|work)/", text
    )


def test_every_dependency_is_pinned() -> None:
    pins = (ROOT / "constraints.txt").read_text()
    assert "torch==2.13.0\n" in pins
    project = (ROOT / "pyproject.toml").read_text()
    declared = set(re.findall(r'"([a-z][a-z-]*)>=', project)) - {"hatchling"}
    assert {"torch", "llvmlite", "typer", "pytest"} <= declared
    pinned = {name.lower().replace("_", "-") for name in re.findall(r"^([\w.-]+)==", pins, re.M)}
    assert declared <= pinned


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the set-up script and a stand-in for .venv that notes calls of pip."""
    for name in ("script/setup", "pyproject.toml", "constraints.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/usr/bin/env bash\n"
        'if [ "$1 $2" = "-m pip" ]; then echo "$*" >> pip-calls; exit; fi\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    return tmp_path


def set_up(clone: Path, *arguments: str, cwd: Path | None = None) -> str:
    command = [clone / "script" / "setup", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=cwd or clone)
    return done.stdout


def pip_calls(clone: Path) -> list[str]:
    return (clone / "pip-calls").read_text().splitlines()


def test_setup_installs_once_from_any_folder(clone: Path) -> None:
    assert "installing steprule[cli]" in set_up(clone, cwd=clone.parent)
    assert "already installed" in set_up(clone)
    assert len(pip_calls(clone)) == 1
    assert "--constraint constraints.txt torch==2.13.0 --editable .[cli]" in pip_calls(clone)[0]


def test_setup_installs_again_when_a_pin_changed(clone: Path) -> None:
    set_up(clone)
    with (clone / "constraints.txt").open("a") as pins:
        pins.write("another==1.0\n")
    assert "installing" in set_up(clone)
    assert len(pip_calls(clone)) == 2


def test_setup_for_development_contains_the_command_line(clone: Path) -> None:
    set_up(clone, "dev")
    assert "already installed" in set_up(clone, "cli")
    project, timm = pip_calls(clone)
    assert "--editable .[dev,clients]" in project
    assert "--no-deps timm" in timm


def test_setup_refuses_an_unknown_extra(clone: Path) -> None:
    command = [clone / "script" / "setup", "gpu"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "setup: unknown extra 'gpu'; expected cli or dev\n"
