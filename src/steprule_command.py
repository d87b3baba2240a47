"""What the script `steprule` calls: it stands outside the package, whose import takes seconds.

Importing anything of `steprule` imports torch first. Ctrl-C in those seconds is to end the command
as it does later, and an import that fails is what `steprule doctor` is asked about.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib import metadata


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
        sys.stdout.writelines(f"{line}\n" for line in _report(error))
        return 1


def _report(error: Exception) -> Iterator[str]:
    """Yield versions, and why steprule can't be imported: all that `doctor` can say then."""
    for package in ("steprule", "torch", "llvmlite", "numpy", "safetensors", "triton"):
        yield f"  {package:18} {_version_of(package)}"
    yield f"  {'python':18} {platform.python_version()} on {platform.platform()}"
    yield f"! {'import steprule':18} fails: {type(error).__name__}: {error}"
    if _version_of("steprule") != _MISSING:
        needed = [x for x in metadata.requires("steprule") or () if "extra" not in x]
        yield f"    it needs {', '.join(needed)}: pip install --upgrade steprule"


_MISSING = "not installed"


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return _MISSING


if __name__ == "__main__":
    raise SystemExit(main())
