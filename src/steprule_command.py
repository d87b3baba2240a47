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
        if sys.argv[1:2] != ["doctor"] or "steprule.doctor" in sys.modules:
            raise
        sys.stdout.write("\n".join([*_report(error), ""]))
        return 1


def _report(error: Exception) -> list[str]:
    """Return versions, and why steprule can't be imported: all that `doctor` can say then."""
    import platform
    from importlib import metadata

    def version_of(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    packages = ("steprule", "torch", "llvmlite", "numpy", "safetensors", "triton")
    lines = [f"  {package:23} {version_of(package)}" for package in packages]
    lines.append(f"  {'python':23} {platform.python_version()} on {platform.platform()}")
    lines.append(f"! {'import steprule':23} fails: {type(error).__name__}: {error}")
    try:
        needed = [x for x in metadata.requires("steprule") or () if "extra" not in x]
    except metadata.PackageNotFoundError:  # it stands in a folder
        return lines
    return [*lines, f"    it needs {', '.join(needed)}: pip install --upgrade steprule"]


if __name__ == "__main__":
    raise SystemExit(main())
