"""What the optimizer tests share: cases from the registry, and runs beside torch.

A *case* is an optimizer's name and the options it is made with. Cases come from torch's own
table of optimizers (``optim_db``) where torch has the class, and from the constructor's flags for
options that are ours alone; nothing here names an optimizer to give it cases.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
from torch.testing._internal.common_optimizers import OptimizerInfo, optim_db

import steprule
from steprule.engines.gpu.programs.launching import why_unavailable
from steprule.engines.native import switch
from steprule.language.form import form_of
from steprule.language.recording import Recording
from steprule.rules import OPTIMIZERS

#: Whether kernels for GPUs can be run here: conftest.py has Triton's interpreter run them.
HAS_TRITON = why_unavailable() is None
#: Those that are fast here, for tests of many steps.
FAST_ENGINES = ("eager", "foreach", "fused")
ENGINES = (*FAST_ENGINES, *(["triton"] if HAS_TRITON else []))
FLAGS_OF_TORCH = ("foreach", "fused", "capturable", "differentiable")

# What float32 runs may differ by: 50 roundings of half an ulp (6e-8) each way are 6e-6 of the
# values a parameter passed through, which are up to a few units where it ends near 0.
# float64: the same with 1.1e-16. Half precision: state and parameter are rounded each step,
# to 2**-11 and 2**-8, and one flipped rounding feeds the next.
TOLERANCES: dict[torch.dtype, dict[str, float]] = {
    torch.float32: {"rtol": 2e-5, "atol": 1e-5},
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.complex64: {"rtol": 2e-5, "atol": 1e-5},
    torch.complex128: {"rtol": 1e-12, "atol": 1e-13},
    torch.float16: {"rtol": 2e-2, "atol": 2e-2},
    torch.bfloat16: {"rtol": 8e-2, "atol": 8e-2},
}


class Case(NamedTuple):
    """An optimizer and the options it is made with."""

    name: str
    options: dict[str, Any]

    @property
    def ours(self) -> type[steprule.Optimizer]:
        return OPTIMIZERS[self.name.lower()]

    @property
    def theirs(self) -> type[torch.optim.Optimizer]:
        """torch's class; the test is skipped where this torch has none of that name."""
        return needs_torchs(self.name)


def needs_torchs(name: str, module: Any = torch.optim) -> Any:
    """What torch calls ``name``; skips the test where this torch has no such thing."""
    found = getattr(module, name, None)
    if found is None:
        pytest.skip(f"torch {torch.__version__} has no {name}")
    return found


#: Whether this run has native loops: with STEPRULE_NATIVE=0 results are the same without them.
NATIVE_LOOPS = switch.is_allowed()


def needs_native_loops() -> None:
    """Skip the test where they are switched off."""
    if not NATIVE_LOOPS:
        pytest.skip(f"native loops: {switch.why_off()}")


def needs_torch(version: str, reason: str) -> None:
    """Skip the test on a torch older than ``version`` (or than the oldest where this was seen)."""
    if torch.torch_version.TorchVersion(torch.__version__) < version:
        pytest.skip(f"torch {torch.__version__}: {reason}")


def info_of(name: str) -> OptimizerInfo | None:
    """torch's record of an optimizer."""
    return next((info for info in optim_db if info.name == name), None)


def torch_cases(name: str) -> list[Case]:
    """The sets of options that torch tests this optimizer with."""
    info = info_of(name)
    inputs = info.optim_inputs_func(device="cpu") if info else []
    without = [{k: v for k, v in i.kwargs.items() if k not in FLAGS_OF_TORCH} for i in inputs]
    unique = {repr(options): options for options in without}
    return [Case(name, options) for options in unique.values()]


def flag_cases(name: str) -> list[Case]:
    """Each flag of the constructor turned on by itself, where the options allow it."""
    found = []
    for parameter in inspect.signature(OPTIMIZERS[name.lower()]).parameters.values():
        if parameter.default is False and parameter.name not in FLAGS_OF_TORCH:
            options = {parameter.name: True, "lr": 0.01}
            if "momentum" in parameter.name or parameter.name == "nesterov":
                options["momentum"] = 0.9
            found.append(Case(name, options))
    return found


def rule_optimizers(where: Callable[[Any], bool] = lambda _: True) -> list[str]:
    """Names of the optimizers that have a rule and take dense gradients, and fit ``where``."""
    return [
        cls.__name__
        for cls in OPTIMIZERS.values()
        if cls.rule is not None and cls.rule.sparse != "only" and where(cls.rule)
    ]


def elementwise_optimizers() -> list[str]:
    """Names of the optimizers whose rule every engine runs."""
    return rule_optimizers(lambda rule: rule.elementwise)


def recording_of(name: str) -> Recording:
    """An optimizer's rule as recorded with its default options."""
    cls = OPTIMIZERS[name.lower()]
    group = cls(make_params(name)).param_groups[0]
    assert cls.rule is not None
    return form_of(cls.rule, {**cls.extras, **group}).recording()


def has_reductions(name: str) -> bool:
    """Whether an optimizer's rule has sums over a parameter's elements, by default."""
    return recording_of(name).has_reductions


def takes_every_combination(name: str) -> bool:
    """Whether tests of rules with other axes take all there are, and not some of them by turns.

    Rules know nothing of engines and formats: what torch has not, and has neither sums nor
    operations on matrices, adds little, and every kernel has to be compiled.
    """
    rule = OPTIMIZERS[name.lower()].rule
    if rule is None or not rule.is_recorded or hasattr(torch.optim, name):
        return True
    return has_reductions(name) or bool(recording_of(name).matrix_operations)


def has_shared_reductions(name: str) -> bool:
    """Whether it has sums over several parameters."""
    return bool(recording_of(name).shared_reductions)


def engines_of(name: str) -> tuple[str, ...]:
    """The engines that run this optimizer's rule, but for what is interpreted here."""
    rule = OPTIMIZERS[name.lower()].rule
    if rule is None or not rule.is_recorded:
        return ("eager",)
    if any(slot.is_square for slot in rule.slots.values()):  # other engines take vectors alone
        return ("eager", "foreach")
    return FAST_ENGINES


def params_of(case_or_name: Case | str) -> list[Any]:
    """pytest params for each engine of a case, readable ids included."""
    case = case_or_name if isinstance(case_or_name, Case) else Case(case_or_name, {})
    described = ",".join(f"{k}={v}" for k, v in case.options.items()) or "defaults"
    return [
        pytest.param(case, engine, id=f"{case.name}-{described}-{engine}")
        for engine in engines_of(case.name)
    ]


def shapes_for(name: str) -> list[tuple[int, ...]]:
    """Shapes that the optimizer takes: 0-d, empty, and more than a kernel's chunk among them."""
    if getattr(OPTIMIZERS[name.lower()], "only_2d", False):
        return [(5, 7), (60, 30), (100, 101)]
    if name == "Adafactor":  # torch's divides by zero for an empty parameter
        return [(5, 7), (3,), (), (100, 101)]  # test_axes.py has those of three axes
    return [(5, 7), (3,), (), (0,), (100, 101)]


def make_params(name: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    """Parameters of :func:`shapes_for`, the same for the same seed whatever the dtype."""
    wide = torch.complex128 if dtype.is_complex else torch.float64
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=wide).to(dtype).requires_grad_()
        for shape in shapes_for(name)
    ]


def gradients(params: list[torch.Tensor], steps: int, seed: int = 1) -> Iterator[None]:
    """Give the parameters new gradients, ``steps`` times."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for param in params:
            wide = torch.complex128 if param.is_complex() else torch.float64
            noise = torch.randn(param.shape, generator=generator, dtype=wide)
            param.grad = noise.to(param.dtype)
        yield


def run(
    cls: type[torch.optim.Optimizer],
    case: Case,
    dtype: torch.dtype = torch.float32,
    steps: int = 50,
    seed: int = 0,
    **more: Any,
) -> tuple[list[torch.Tensor], Any]:
    """Train parameters on random gradients; return them and the optimizer."""
    params = make_params(case.name, dtype, seed)
    optimizer = cls(params, **case.options, **more)
    for _ in gradients(params, steps, seed + 1):
        optimizer.step()
    return params, optimizer


def assert_equal_runs(
    ours: tuple[list[torch.Tensor], Any],
    theirs: tuple[list[torch.Tensor], Any],
    dtype: torch.dtype,
    **tolerance: float,
) -> None:
    """Parameters and all state agree within the dtype's tolerance."""
    tolerance = tolerance or TOLERANCES[dtype]
    torch.testing.assert_close(ours[0], theirs[0], **tolerance)
    our_state, their_state = (run[1].state_dict()["state"] for run in (ours, theirs))
    assert our_state.keys() == their_state.keys()
    for key, entry in their_state.items():
        assert our_state[key].keys() == entry.keys()
        for name, value in entry.items():
            mine, theirs_value = our_state[key][name], torch.as_tensor(value)
            assert mine.shape == theirs_value.shape, name
            is_scalar = theirs_value.dim() == 0
            assert is_scalar or mine.dtype == theirs_value.dtype, name
            # A state slot is as large as its gradients' squares may be: scale the tolerance.
            scale = max(1.0, float(theirs_value.abs().max())) if theirs_value.numel() else 1.0
            torch.testing.assert_close(
                mine.to(theirs_value.dtype),
                theirs_value,
                rtol=tolerance["rtol"],
                atol=tolerance["atol"] * scale,
                msg=lambda text, name=name: f"state {name!r}: {text}",
            )
