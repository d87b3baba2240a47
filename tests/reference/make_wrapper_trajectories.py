"""Makes trajectories/wrappers/NAME.json: 50 steps of other implementations of SAM and Lookahead.

Run by hand, as ``make_trajectories.py``::

    python tests/reference/make_wrapper_trajectories.py wheels
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from make_trajectories import module_of
from wrapper_runs import BASE, LOOKAHEAD, SAMS, trained


def main(wheels: Path) -> None:
    sys.path.insert(0, str(wheels))
    import pytorch_optimizer

    timm: Any = module_of(wheels / "timm" / "optim", "timm_optim", "lookahead")

    def sam(options: dict[str, Any]) -> Callable[..., Any]:
        return lambda params: pytorch_optimizer.SAM(params, torch.optim.SGD, **options, **BASE)

    def lookahead(wrap: Any) -> Callable[..., Any]:
        return lambda params: wrap(torch.optim.SGD(params, **BASE), **LOOKAHEAD)

    kozistrs = "pytorch-optimizer 4.1.0"
    runs = {
        # Their step expects the first gradients to be there.
        **{name: (kozistrs, sam(options), True) for name, options in SAMS.items()},
        "Lookahead": (kozistrs, lookahead(pytorch_optimizer.Lookahead), False),
        "Lookahead_timm": ("timm 1.0.31", lookahead(timm.Lookahead), False),
    }
    folder = Path(__file__).parent / "trajectories" / "wrappers"
    folder.mkdir(exist_ok=True)
    for name, (package, make, is_ahead) in runs.items():
        # Theirs takes norms in float32.
        with mock.patch.object(torch.Tensor, "float", torch.Tensor.double):
            found = trained(make, gradients_first=is_ahead)
        params = [x.flatten().tolist() for x in found]
        made_by = [package, f"torch {torch.__version__}"]
        text = json.dumps({"made by": made_by, "params": params})
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
