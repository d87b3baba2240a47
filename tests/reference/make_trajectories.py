"""Makes trajectories/NAME.json: parameters after 50 steps of implementations that are not ours.

Run by hand, where the packages are (their wheels unpacked into a folder are enough)::

    pip download --no-deps -d wheels timm==1.0.31 pytorch-optimizer==4.1.0 prodigyopt==1.1.2
        lion-pytorch==0.2.5 grokadamw==0.1.2 schedulefree==1.4.1
    (unzip them there, with sophia.py of github.com/Liuhong99/Sophia, mars.py of
    github.com/AGI-Arena/MARS, soap.py of github.com/nikhilvyas/SOAP and the folder
    distributed_shampoo of github.com/facebookresearch/optimizers beside them)
    python tests/reference/make_trajectories.py wheels [NAME...]
"""

from __future__ import annotations

import importlib
import json
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from reference_runs import OTHER_SHAPES, RUNS, SHAPES, trained


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


def in_double(cls: type[Any]) -> type[Any]:
    """QHAdam of pytorch-optimizer with the weights of its averages in float64, not in float32."""

    class InDouble(cls):  # type: ignore[misc]
        def init_group(self, group: Any, **kwargs: Any) -> None:
            super().init_group(group, **kwargs)
            for entry in self.state.values():
                for key in ("beta1_weight", "beta2_weight"):
                    entry[key] = entry[key].double()

    return InDouble


@contextmanager
def float64_for_all() -> Iterator[None]:
    """Have float64 also where an implementation asks for float32, or for the default."""
    before = torch.get_default_dtype(), torch.Tensor.float
    torch.set_default_dtype(torch.float64)
    torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.set_default_dtype(before[0])
        torch.Tensor.float = before[1]  # type: ignore[method-assign]


def metas_shampoo(
    params: Any,
    eps: float,
    precondition_1d: bool,
    **options: Any,
) -> Any:
    """Meta's distributed Shampoo in float64, with Adam grafted, as ours is by default."""
    theirs = importlib.import_module("distributed_shampoo")
    assert precondition_1d  # as theirs does
    return theirs.DistributedShampoo(
        params,
        epsilon=eps,
        # It would make one long vector of a small matrix.
        distributed_config=theirs.SingleDeviceDistributedConfig(target_parameter_dimensionality=2),
        grafting_config=theirs.AdamPreconditionerConfig(beta2=options["betas"][1], epsilon=1e-8),
        preconditioner_config=theirs.RootInvShampooPreconditionerConfig(
            factor_matrix_dtype=torch.float64, inv_factor_matrix_dtype=torch.float64
        ),
        **options,
    )


def with_wide_scalars(make: Callable[..., Any]) -> Callable[..., Any]:
    """LaProp of timm, whose bias corrections have torch's default dtype."""
    torch.set_default_dtype(torch.float64)
    return make


def implementations(wheels: Path) -> dict[str, Theirs]:
    """Who else has each optimizer; a package is imported when one of its classes is made."""

    def timm(module: str, name: str) -> Any:
        return getattr(module_of(wheels / "timm" / "optim", "timm_optim", module), name)

    def package(module: str, name: str) -> Any:
        return getattr(importlib.import_module(module), name)

    def kozistr(name: str) -> Any:
        return package("pytorch_optimizer", name)

    timms, kozistrs = "timm 1.0.31", "pytorch-optimizer 4.1.0"
    return {
        # Its default is another exponent.
        "ADOPT": Theirs(timms, lambda p, **o: timm("adopt", "Adopt")(p, clip_exp=0.25, **o)),
        "AdEMAMix": Theirs(
            kozistrs,
            lambda p, alpha_warmup, beta3_warmup, **o: kozistr("AdEMAMix")(
                p, weight_decouple=True, t_alpha_beta3=beta3_warmup, **o
            ),
        ),
        # The authors' package computes the same, and prints a lot.
        "AdaBelief": Theirs(timms, lambda p, **o: timm("adabelief", "AdaBelief")(p, **o)),
        "AdamW+cautious": Theirs(
            timms, lambda p, cautious, **o: timm("adamw", "AdamWLegacy")(p, caution=cautious, **o)
        ),
        "AdamW+peak_lr": Theirs(
            "torch-optimi 0.3.3",
            lambda p, peak_lr, **o: package("optimi", "AdamW")(
                p, eps=1e-8, decouple_lr=True, max_lr=peak_lr, **o
            ),
        ),
        "Adan": Theirs(timms, lambda p, **o: timm("adan", "Adan")(p, **o)),
        "GrokAdamW": Theirs(
            "grokadamw 0.1.2",
            lambda p, clip_grad_norm, clip_grad_norm_over, **o: package("grokadamw", "GrokAdamW")(
                p, gradient_clipping=clip_grad_norm, **o
            ),
        ),
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
        "LaProp": Theirs(timms, lambda p, **o: with_wide_scalars(timm("laprop", "LaProp"))(p, **o)),
        "Lion": Theirs(
            "lion-pytorch 0.2.5", lambda p, **o: package("lion_pytorch", "Lion")(p, **o)
        ),
        "Lion+cautious": Theirs(
            timms, lambda p, cautious, **o: timm("lion", "Lion")(p, caution=cautious, **o)
        ),
        # Others start at another gradient (timm), or add eps in another place (pytorch-optimizer).
        "MARS": Theirs(
            "github.com/AGI-Arena/MARS 4831e28",
            lambda p, **o: package("mars", "MARS")(p, optimize_1d=True, **o),
        ),
        "Prodigy": Theirs(
            "prodigyopt 1.1.2", lambda p, **o: package("prodigyopt", "Prodigy")(p, **o)
        ),
        "QHAdam": Theirs(kozistrs, lambda p, **o: in_double(kozistr("QHAdam"))(p, **o)),
        "QHM": Theirs(kozistrs, lambda p, **o: kozistr("QHM")(p, **o)),
        "ScheduleFreeAdamW": Theirs(
            "schedulefree 1.4.1",
            lambda p, **o: package("schedulefree", "AdamWScheduleFree")(p, **o),
        ),
        "ScheduleFreeSGD": Theirs(
            "schedulefree 1.4.1", lambda p, **o: package("schedulefree", "SGDScheduleFree")(p, **o)
        ),
        # Others have momentum of updates, or no grafting (both of pytorch-optimizer).
        "Shampoo": Theirs("github.com/facebookresearch/optimizers f606606", metas_shampoo),
        "Signum": Theirs(kozistrs, lambda p, **o: kozistr("SignSGD")(p, **o)),
        "SOAP": Theirs(
            "github.com/nikhilvyas/SOAP a1e5535",
            lambda p, **o: package("soap", "SOAP")(p, **o),
        ),
        "SophiaG": Theirs(
            "github.com/Liuhong99/Sophia a7e1572",
            lambda p, **o: package("sophia", "SophiaG")(p, **o),
        ),
        "StableAdamW": Theirs(
            kozistrs, lambda p, **o: package("pytorch_optimizer", "StableAdamW")(p, **o)
        ),
        "Yogi": Theirs(kozistrs, lambda p, **o: kozistr("Yogi")(p, weight_decouple=False, **o)),
    }


def main(wheels: Path, names: Sequence[str]) -> None:
    sys.path.insert(0, str(wheels))
    theirs = implementations(wheels)
    folder = Path(__file__).parent / "trajectories"
    for name in names or RUNS:
        shapes = OTHER_SHAPES.get(name, SHAPES)
        with float64_for_all():
            found = trained(theirs[name].make, RUNS[name], shapes=shapes)
        params = [x.flatten().tolist() for x in found]
        made_by = [theirs[name].package, f"torch {torch.__version__}"]
        text = json.dumps({"made by": made_by, "params": params})
        (folder / f"{name}.json").write_text(text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
