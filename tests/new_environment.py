"""A new virtual environment with some packages and what they need, linked from those here.

It has what an installer would have put there and nothing else, without a download: each package's
files, its metadata among them, are links to this environment's. So a dependency that is not
declared is missing there as it is on a user's machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LIMIT = 300  # seconds, of one command
# Where a run would find what is installed here.
LEADS_BACK = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")


@dataclass(frozen=True)
class NewEnvironment:
    """A virtual environment.

    Attributes:
        folder: where it is.
        work: an empty folder, in which its commands run.
    """

    folder: Path
    work: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def install(self, wheel: Path, extra: str = "") -> None:
        """Install a wheel by pip, which must find all that it needs to be there."""
        target = f"{wheel}[{extra}]" if extra else str(wheel)
        pip = [sys.executable, "-m", "pip", "--python", str(self.python), "install"]
        options = ["--isolated", "--no-index", "--disable-pip-version-check", "--quiet"]
        done = subprocess.run(
            [*pip, *options, target], capture_output=True, text=True, timeout=LIMIT
        )
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, expects: int = 0) -> subprocess.CompletedProcess[str]:
        """Run one of its commands, and see that its exit code is as expected."""
        env = {k: v for k, v in os.environ.items() if k not in LEADS_BACK}
        env |= {"STEPRULE_CACHE_DIR": str(self.folder / "kernels"), "MPLBACKEND": "agg"}
        done = subprocess.run(
            [str(self.folder / "bin" / command[0]), *command[1:]],
            capture_output=True,
            text=True,
            timeout=LIMIT,
            env=env,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == expects, f"{command}: {done.stdout}\n{done.stderr}"
        return done


def new_environment(folder: Path, packages: Sequence[str]) -> NewEnvironment:
    """Make one with these packages, and those that they need, as they are here."""
    venv.create(folder / "venv", with_pip=False, symlinks=True)
    made = NewEnvironment(folder / "venv", folder / "work")
    made.work.mkdir()
    purelib = sysconfig.get_path("purelib", "posix_prefix", {"base": str(made.folder)})
    for distribution in _with_all_they_need(packages):
        _link(distribution, Path(purelib))
    return made


def needed_by(requirements: Sequence[str], extra: str = "") -> list[str]:
    """Return those of a wheel's requirements that hold here, for one of its extras or none."""
    parsed = map(Requirement, requirements)
    return [str(x).partition(";")[0] for x in parsed if _holds(x, extra)]


def _holds(requirement: Requirement, extra: str) -> bool:
    marker = requirement.marker
    return marker is None or marker.evaluate({"extra": extra})


def _with_all_they_need(packages: Sequence[str]) -> Iterator[metadata.Distribution]:
    seen: set[tuple[str, str]] = set()
    waiting = [*map(Requirement, packages)]
    linked: set[str] = set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        distribution = metadata.distribution(name)
        if name not in linked:
            linked.add(name)
            yield distribution
        for extra in ("", *requirement.extras):
            if (name, extra) not in seen:
                seen.add((name, extra))
                asked = map(Requirement, distribution.requires or ())
                waiting += [x for x in asked if _holds(x, extra)]


def _link(distribution: metadata.Distribution, purelib: Path) -> None:
    for file in distribution.files or ():
        if file.parts[0] == "..":  # scripts, for which it has no use
            continue
        link = purelib / file
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(Path(str(distribution.locate_file(file))).resolve())
