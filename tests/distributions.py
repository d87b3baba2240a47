"""Builds the source distribution and the wheel, and says what is wrong with them.

`script/build` runs it: `python tests/distributions.py FOLDER`.
"""

from __future__ import annotations

import configparser
import email
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.metadata import Metadata

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
#: What the project's folder has that people who build from source need, beside the sources.
IN_SDIST = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "constraints.txt",
    "docs/architecture.md",
    "pyproject.toml",
    "script/test",
    "tests/test_wheel.py",
)
#: What is nobody else's: never packed, even where git does not know that it is to be ignored.
NEVER = re.compile(r"(^|/)(\.venv|\.git|__pycache__|dist|shared|\.matrix)/|\.pyc$")
RELATIVE_LINK = re.compile(
    r"\]\((?!https?:|mailto:|#)([^)]*)\)|(?:src|href)=\"(?!https?:|#)([^\"]*)\""
)
BUILD_LIMIT = 300  # seconds


@dataclass(frozen=True)
class Distributions:
    """What was built: the wheel is made of the source distribution."""

    sdist: Path
    wheel: Path


def build(folder: Path) -> Distributions:
    """Build both.

    Raises:
        RuntimeError: it failed; the message has the tool's own last lines.
    """
    _run_build(ROOT, folder)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return Distributions(sdist, wheel)


def _run_build(source: Path, folder: Path, *options: str) -> None:
    command = [sys.executable, "-m", "build", "--no-isolation", *options]
    done = subprocess.run(
        [*command, "--outdir", folder, source],
        capture_output=True,
        text=True,
        timeout=BUILD_LIMIT,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode:
        last = "\n".join((done.stdout + done.stderr).splitlines()[-15:])
        raise RuntimeError(f"{' '.join(command)} failed in {source}:\n{last}")


def complaints(built: Distributions) -> Iterator[str]:
    """Yield what is wrong with them; nothing if all is well."""
    yield from _wrong_with_files(built)
    yield from _wrong_with_metadata(built.wheel)
    yield from _differs_from_ours(built.wheel)


def contents(wheel: Path) -> dict[str, bytes]:
    """Return the files of a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _wrong_with_files(built: Distributions) -> Iterator[str]:
    packed = {name for name in contents(built.wheel) if ".dist-info/" not in name}
    ours = {
        str(file.relative_to(SOURCE))
        for file in SOURCE.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    yield from (f"the wheel lacks {name}" for name in sorted(ours - packed))
    yield from (f"the wheel has {name}, which is not in src" for name in sorted(packed - ours))
    if "steprule/py.typed" not in packed:
        yield "the wheel has no steprule/py.typed: type checkers will not look at it"
    with tarfile.open(built.sdist) as archive:
        names = [member.name.partition("/")[2] for member in archive if member.isfile()]
    yield from (f"the source distribution lacks {x}" for x in IN_SDIST if x not in names)
    yield from (f"the source distribution has {x}" for x in names if NEVER.search(x))


def _metadata(wheel: Path) -> bytes:
    files = contents(wheel)
    return next(files[name] for name in files if name.endswith(".dist-info/METADATA"))


def _wrong_with_metadata(wheel: Path) -> Iterator[str]:
    raw = _metadata(wheel)
    metadata = Metadata.from_email(raw, validate=True)  # as the index does
    version = re.search(r'__version__ = "(.*)"', (SOURCE / "steprule/__init__.py").read_text())
    if version is None or str(metadata.version) != version[1]:
        yield f"the version is {metadata.version}, not steprule.__version__"
    if metadata.description_content_type != "text/markdown":
        yield "the README is not said to be Markdown"
    prose = re.sub(r"```.*?```", "", metadata.description or "", flags=re.DOTALL)
    for found in RELATIVE_LINK.finditer(prose):
        yield f"the README links to {found[1] or found[2]}, which is not there for its readers"
    if not email.message_from_bytes(raw).get_all("License-File"):
        yield "there is no license file"
    entry_points = configparser.ConfigParser()
    files = contents(wheel)
    name = next((name for name in files if name.endswith("entry_points.txt")), None)
    entry_points.read_string("" if name is None else files[name].decode())
    script = entry_points.get("console_scripts", "steprule", fallback=None)
    if script != "steprule_command:main":
        yield f"the script steprule is {script}"


def _differs_from_ours(wheel: Path) -> Iterator[str]:
    """Compare with a wheel made of this folder, without a source distribution between."""
    with tempfile.TemporaryDirectory() as folder:
        _run_build(ROOT, Path(folder), "--wheel")
        (ours,) = map(contents, Path(folder).glob("*.whl"))
    theirs = contents(wheel)
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            yield f"{name} is not the same in a wheel made without the source distribution"


def main(folder: Path) -> int:
    """Build, list what is in the wheel, say what is wrong; return the exit code."""
    built = build(folder)
    for name, content in sorted(contents(built.wheel).items()):
        print(f"{len(content):9,}  {name}")
    found = list(complaints(built))
    for path in (built.sdist, built.wheel):
        print(f"build: {path} ({path.stat().st_size / 1e6:.2f} MB)")
    for complaint in found:
        print(f"build: {complaint}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    raise SystemExit(main(Path(sys.argv[1])))
