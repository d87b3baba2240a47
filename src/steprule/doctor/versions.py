"""Versions, and whether they are ones that steprule was made for."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

import steprule
from steprule.doctor.finding import Finding, note, problem
from steprule.doctor.installed import EXTRAS, Requirement, requirements, version_of

SECTION = "versions"


def versions() -> Iterator[Finding]:
    """Yield the versions of all that matters, and what is missing or too old."""
    yield Finding(
        SECTION, "steprule", f"{steprule.__version__} in {Path(steprule.__file__).parent}"
    )
    yield Finding(SECTION, "python", _python())
    asked = requirements()
    if not asked:
        yield note(
            SECTION,
            "requirements",
            "steprule is imported from a folder, not installed: what it needs is not known",
            "install it by pip (pip install -e FOLDER for work on it)",
        )
    always = [x for x in asked if not x.extra] or [Requirement("torch"), Requirement("llvmlite")]
    for requirement in always:
        yield _package(requirement)
    yield Finding(SECTION, "triton", version_of("triton") or "not installed")
    yield Finding(SECTION, "system", platform.platform())
    for extra in EXTRAS:
        yield _extra(extra, asked)


def _python() -> str:
    has_lock = getattr(sys, "_is_gil_enabled", lambda: True)()
    build = "" if has_lock else ", without the global lock"
    return f"{platform.python_version()} ({platform.python_implementation()}{build})"


def _package(requirement: Requirement) -> Finding:
    name = requirement.package
    # torch's own word has the build in it, as 2.13.0+cpu.
    version = str(torch.__version__) if name == "torch" else version_of(name)
    if requirement.is_met_by(version):
        return Finding(SECTION, name, version or "")
    oldest = f" {requirement.oldest} or later" if requirement.oldest else ""
    return problem(
        SECTION,
        name,
        version or "not installed",
        f"steprule needs {name}{oldest}: pip install --upgrade {name}",
    )


def _extra(extra: str, asked: list[Requirement]) -> Finding:
    name, wanted = f"extra {extra}", [x for x in asked if x.extra == extra]
    if not wanted:
        return Finding(SECTION, name, "not known")
    missing = [x.package for x in wanted if not x.is_met_by(version_of(x.package))]
    if not missing:
        return Finding(SECTION, name, "installed")
    how = f"pip install '.[{extra}]' in the checkout"
    return Finding(SECTION, name, f"not installed: {', '.join(missing)} missing or old ({how})")
