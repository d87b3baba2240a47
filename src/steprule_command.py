"""What the script `steprule` calls: it stands outside the package, whose import takes seconds.

Importing anything of `steprule` imports torch first. Ctrl-C in those seconds is to end the command
as it does later, and an import that fails is what `steprule doctor` is asked about.
"""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line and return its exit code, as `steprule.cli.main` does."""
    try:
        from steprule.cli import main as run

        return run()
    except KeyboardInterrupt:
        sys.stderr.write("steprule: interrupted\n")
        return 130
    except Exception as error:
        words = [word for word in sys.argv[1:] if not word.startswith("-")]
        if words[:1] != ["doctor"] or "steprule.doctor" in sys.modules:
            raise
        sys.stdout.write(_report(error, as_json="--json" in sys.argv[1:]) + "\n")
        return 1


_IMPORT = "import steprule"
_PACKAGES = ("steprule", "torch", "llvmlite", "numpy", "safetensors", "triton")


def _report(error: Exception, *, as_json: bool) -> str:
    """Return versions, and why steprule can't be imported: all that `doctor` can say then."""
    import json
    import platform

    versions = {package: _version_of(package) or "not installed" for package in _PACKAGES}
    versions["python"] = f"{platform.python_version()} on {platform.platform()}"
    why, advice = f"fails: {type(error).__name__}: {error}", _advice(error)
    if not as_json:
        lines = [f"  {name:23} {value}" for name, value in versions.items()]
        return "\n".join([*lines, f"! {_IMPORT:23} {why}", *(f"    {line}" for line in advice)])
    found = [(name, value, "ok", "") for name, value in versions.items()]
    found.append((_IMPORT, why, "problem", "; ".join(advice)))
    keys = ("name", "value", "level", "advice")  # as steprule.doctor.report has it
    findings = [{"section": "versions", **dict(zip(keys, row, strict=True))} for row in found]
    return json.dumps({"is_broken": True, "findings": findings}, indent=2)


def _advice(error: Exception) -> list[str]:
    """Return what steprule needs, and which package is to be installed, or installed anew."""
    import re
    from importlib import metadata

    try:
        needed = [x for x in metadata.requires("steprule") or () if "extra" not in x]
    except metadata.PackageNotFoundError:  # it stands in a folder
        needed = []
    advice = [f"it needs {', '.join(needed)}"] if needed else []
    names = [re.split(r"[^\w.-]", requirement)[0] for requirement in needed]
    missing = [x for x, name in zip(needed, names, strict=True) if _version_of(name) is None]
    culprit = _failing_package(error)
    if missing:
        advice.append(f"not installed: pip install {' '.join(map(repr, missing))}")
    elif culprit == "torch":
        advice.append(
            "torch is installed and can't be imported: install it anew, by the command that "
            "pytorch.org gives"
        )
    elif culprit:
        advice.append(
            f"{culprit} is installed and can't be imported: pip install --force-reinstall {culprit}"
        )
    return advice


def _version_of(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _failing_package(error: Exception) -> str | None:
    """Return the package in whose files an import failed, by the frames that it came through.

    A module that lacks a name which another one asks of it is the one to blame, and not that other.
    """
    from importlib import metadata

    modules = []
    traceback = error.__traceback__
    while traceback is not None:
        modules.append(str(traceback.tb_frame.f_globals.get("__name__", "")).partition(".")[0])
        traceback = traceback.tb_next
    if isinstance(error, ImportError) and error.name and not isinstance(error, ModuleNotFoundError):
        modules.append(error.name.partition(".")[0])
    packages = metadata.packages_distributions()
    ours = {"steprule", "steprule_command"}
    known = [name for name in modules if name in packages and name not in ours]
    return packages[known[-1]][0] if known else None


if __name__ == "__main__":
    raise SystemExit(main())
