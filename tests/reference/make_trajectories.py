"""Makes trajectories.json: parameters after 50 steps of implementations that are not ours.

Run by hand, where the packages are (their wheels unpacked into a folder are enough)::

    pip download --no-deps -d wheels timm==1.0.31 pytorch-optimizer==4.1.0 prodigyopt==1.1.2
    (unzip them there)
    python tests/reference/make_trajectories.py wheels
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference_runs import RUNS, trained


def module_of(folder: Path, package: str, name: str) -> Any:
    """A module of a package without the package's own ``__init__``, which imports much more."""
    stand_in = types.ModuleType(package)
    stand_in.__path__ = [str(folder)]
    sys.modules[package] = stand_in
    return importlib.import_module(f"{package}.{name}")


def main(wheels: Path) -> None:
    timm = wheels / "timm" / "optim"
    sys.path.insert(0, str(wheels))
    theirs = {
        "LAMB": lambda p, **o: module_of(timm, "timm_optim", "lamb").Lamb(
            p, always_adapt=True, max_grad_norm=None, **o
        ),
        "LARS": lambda p, trust_coefficient, **o: module_of(timm, "timm_optim", "lars").Lars(
            p, always_adapt=True, trust_coeff=trust_coefficient, **o
        ),
        "Prodigy": lambda p, **o: importlib.import_module("prodigyopt").Prodigy(p, **o),
        "StableAdamW": lambda p, **o: importlib.import_module("pytorch_optimizer").StableAdamW(
            p, **o
        ),
    }
    found = {
        name: [x.flatten().tolist() for x in trained(theirs[name], options)]
        for name, options in RUNS.items()
    }
    made_by = {
        "timm": "1.0.31",
        "pytorch-optimizer": "4.1.0",
        "prodigyopt": "1.1.2",
        "torch": torch.__version__,
    }
    text = json.dumps({"made by": made_by, "params": found})
    (Path(__file__).parent / "trajectories.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
