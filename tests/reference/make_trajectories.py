"""Makes trajectories/NAME.json: parameters after 50 steps of implementations that are not ours.

Run by hand, where the packages are (their wheels unpacked into a folder are enough)::

    pip download --no-deps -d wheels timm==1.0.31 pytorch-optimizer==4.1.0 prodigyopt==1.1.2
    (unzip them there)
    python tests/reference/make_trajectories.py wheels [NAME...]
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference_runs import RUNS, trained


@dataclass(frozen=True)
class Theirs:
    """Another implementation: the package and version, and what makes its optimizer."""

    package: str
    make: Callable[..., Any]


def module_of(folder: Path, package: str, name: str) -> Any:
    """A module of a package without the package's own ``__init__``, which imports much more."""
    stand_in = types.ModuleType(package)
    stand_in.__path__ = [str(folder)]
    sys.modules[package] = stand_in
    return importlib.import_module(f"{package}.{name}")


def implementations(wheels: Path) -> dict[str, Theirs]:
    """Who else has each optimizer; a package is imported when one of its classes is made."""

    def timm(module: str, name: str) -> Any:
        return getattr(module_of(wheels / "timm" / "optim", "timm_optim", module), name)

    def package(module: str, name: str) -> Any:
        return getattr(importlib.import_module(module), name)

    timms, kozistrs = "timm 1.0.31", "pytorch-optimizer 4.1.0"
    return {
        "LAMB": Theirs(
            timms,
            lambda p, **o: timm("lamb", "Lamb")(p, always_adapt=True, max_grad_norm=None, **o),
        ),
        "LARS": Theirs(
            timms,
            lambda p, trust_coefficient, **o: timm("lars", "Lars")(
                p, always_adapt=True, trust_coeff=trust_coefficient, **o
            ),
        ),
        "Prodigy": Theirs(
            "prodigyopt 1.1.2", lambda p, **o: package("prodigyopt", "Prodigy")(p, **o)
        ),
        "StableAdamW": Theirs(
            kozistrs, lambda p, **o: package("pytorch_optimizer", "StableAdamW")(p, **o)
        ),
    }


def main(wheels: Path, names: Sequence[str]) -> None:
    sys.path.insert(0, str(wheels))
    theirs = implementations(wheels)
    folder = Path(__file__).parent / "trajectories"
    for name in names or RUNS:
        params = [x.flatten().tolist() for x in trained(theirs[name].make, RUNS[name])]
        made_by = [theirs[name].package, f"torch {torch.__version__}"]
        text = json.dumps({"made by": made_by, "params": params})
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
