"""Our classes beside torch's: the same trajectories, the same state, state dicts both ways."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import pytest
import torch
from helpers import (
    TOLERANCES,
    Case,
    assert_equal_runs,
    engines_of,
    gradients,
    make_params,
    needs_torch,
    needs_torchs,
    params_of,
    rule_optimizers,
    run,
    torch_cases,
)

import steprule

NAMES = rule_optimizers()
CASES = list(chain.from_iterable(torch_cases(name) for name in NAMES))


@pytest.fixture
def double_default() -> Any:
    """torch keeps step counts and the like in the default dtype: compare float64 with float64."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def tolerance_of(case: Case, dtype: torch.dtype) -> dict[str, float]:
    if case.name == "Muon":
        # Both compute in bfloat16, where a last-bit difference of the input can flip a rounding
        # of 2**-8; a step is lr wide and there are 50.
        lr = float(case.options.get("lr", 1e-3))
        return {"rtol": 1e-5, "atol": 2**-8 * lr * 50}
    return TOLERANCES[dtype]


@pytest.mark.parametrize(
    ("case", "engine"), list(chain.from_iterable(params_of(case) for case in CASES))
)
def test_float32_trajectory_is_torchs(case: Case, engine: str) -> None:
    ours = run(case.ours, case, engine=engine)
    theirs = run(case.theirs, case)
    assert_equal_runs(ours, theirs, torch.float32, **tolerance_of(case, torch.float32))


@pytest.mark.usefixtures("double_default")
@pytest.mark.parametrize(
    ("case", "engine"), list(chain.from_iterable(params_of(case) for case in CASES))
)
def test_float64_trajectory_is_torchs(case: Case, engine: str) -> None:
    options = {k: v.double() if torch.is_tensor(v) else v for k, v in case.options.items()}
    case = Case(case.name, options)
    ours = run(case.ours, case, torch.float64, engine=engine)
    theirs = run(case.theirs, case, torch.float64)
    assert_equal_runs(ours, theirs, torch.float64, **tolerance_of(case, torch.float64))


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_other_seeds(name: str, seed: int) -> None:
    case = Case(name, {})
    ours, theirs = (run(cls, case, seed=10 * seed) for cls in (case.ours, case.theirs))
    assert_equal_runs(ours, theirs, torch.float32, **tolerance_of(case, torch.float32))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    ("case", "engine"),
    list(
        chain.from_iterable(params_of(n) for n in rule_optimizers(lambda rule: rule.takes_complex))
    ),
)
def test_complex_trajectory_is_torchs(case: Case, engine: str, dtype: torch.dtype) -> None:
    ours = run(case.ours, case, dtype, engine=engine)
    theirs = run(case.theirs, case, dtype)
    tolerance = TOLERANCES[dtype]
    if case.name == "NAdam" and dtype == torch.complex128:
        # torch keeps mu_product in float32 under a float32 default dtype, as we do.
        tolerance = {"rtol": 1e-6, "atol": 1e-7}
    assert_equal_runs(ours, theirs, dtype, **tolerance)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_signature_are_torchs(name: str) -> None:
    if name in ("Adam", "AdamW"):
        needs_torch("2.9", "decoupled_weight_decay is no option")
    case = Case(name, {})
    ours = case.ours(make_params(name))
    theirs = case.theirs(make_params(name))
    assert ours.defaults == theirs.defaults
    assert list(ours.param_groups[0]) == list(theirs.param_groups[0]) or set(
        ours.param_groups[0]
    ) == set(theirs.param_groups[0])
    assert {k: v for k, v in ours.param_groups[0].items() if k != "params"} == {
        k: v for k, v in theirs.param_groups[0].items() if k != "params"
    }
    assert repr(ours).split("\n")[1:] == repr(theirs).split("\n")[1:]


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
@pytest.mark.parametrize("name", NAMES)
def test_state_dict_goes_both_ways_mid_run(name: str, direction: str) -> None:
    """A run handed over at half time goes on as torch's own would."""
    needs_torchs(name)
    case = torch_cases(name)[-1]
    reference, _ = run(case.theirs, case, steps=20)

    params = make_params(name)
    first, second = (
        (case.ours, case.theirs) if direction == "to torch" else (case.theirs, case.ours)
    )
    optimizer = first(params, **case.options)
    steps = gradients(params, 20)
    for _ in range(10):
        next(steps)
        optimizer.step()
    successor = second(params, **case.options)
    successor.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in steps:
        successor.step()
    torch.testing.assert_close(params, reference, **tolerance_of(case, torch.float32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e30, 1e-20, 1e-30, 0.0])
def test_extreme_gradients_as_torch(name: str, value: float) -> None:
    """nan and inf go where torch lets them go; huge, tiny and zero gradients too."""
    case = Case(name, {})
    results = []
    for cls, more in [(case.theirs, {}), *((case.ours, {"engine": e}) for e in engines_of(name))]:
        params = make_params(name)
        optimizer = cls(params, **more)
        for _ in range(3):
            for param in params:
                param.grad = torch.full_like(param, value)
            optimizer.step()
        results.append(params)
    for mine in results[1:]:
        if name == "Muon" or value == float("inf"):
            # Orthogonalised rounding noise is noise; and torch's lerp makes nan of two
            # infinities where a weighted sum stays infinite: the same ruin, as early.
            for m, t in zip(mine, results[0], strict=True):
                assert torch.equal(torch.isfinite(m), torch.isfinite(t))
        else:
            torch.testing.assert_close(mine, results[0], rtol=2e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_million_steps_in(name: str) -> None:
    """Bias corrections far out, where powers of beta vanish."""
    case = Case(name, {})
    results = []
    for cls, more in [(case.theirs, {}), *((case.ours, {"engine": e}) for e in engines_of(name))]:
        params = make_params(name)
        optimizer = cls(params, **more)
        steps = gradients(params, 3)
        next(steps)
        optimizer.step()
        for entry in optimizer.state.values():
            if "step" in entry:
                entry["step"].fill_(1e6)
        for _ in steps:
            optimizer.step()
        results.append(params)
    tolerance = tolerance_of(case, torch.float32)
    for mine in results[1:]:
        torch.testing.assert_close(mine, results[0], **tolerance)


def test_adamw_stays_decoupled_whatever_is_loaded() -> None:
    params = make_params("AdamW")
    saved = torch.optim.Adam(params).state_dict()
    case = Case("AdamW", {})
    optimizer = case.ours(params)
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["decoupled_weight_decay"] is True


def test_muons_unclamped_scale_shrinks_updates_of_wide_matrices() -> None:
    """sqrt(rows / columns), which torch has from 2.14 on; ``"original"`` stops at 1."""
    moved = {}
    for kind in ("original", "spectral_unclamped"):
        for shape in ((2, 8), (8, 2)):
            param = torch.zeros(shape, requires_grad=True)
            param.grad = torch.randn(shape, generator=torch.Generator().manual_seed(0))
            steprule.Muon([param], lr=1.0, weight_decay=0.0, adjust_lr_fn=kind).step()
            moved[kind, shape] = param.detach()
    wide = moved["spectral_unclamped", (2, 8)]
    torch.testing.assert_close(wide, 0.5 * moved["original", (2, 8)])
    torch.testing.assert_close(moved["spectral_unclamped", (8, 2)], moved["original", (8, 2)])
