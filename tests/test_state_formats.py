"""Optimizers with state in formats and parameters of 16 bits.

- engines agree within the format's own step, for every rule, format and rounding;
- a resumed run is the uninterrupted one bit for bit, through ``torch.save`` without pickle;
- formats survive ``load_state_dict``, pickle, deepcopy, ``to`` and ``add_param_group``, and are
  loaded across each other and torch's;
- ``split`` is the float32 run bit for bit; state in 8 bits follows its float32 twin;
- what can't be is refused, saying what can.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from formats import FULL, NAMES, ROUNDINGS, SIZES, STATE_FORMATS, Run, check_same, made, trained
from helpers import (
    ENGINES,
    FAST_ENGINES,
    HAS_TRITON,
    needs_native_loops,
    needs_torchs,
    recording_of,
    takes_every_combination,
)
from torch import Tensor

import steprule
from steprule.formats import Column
from steprule.formats.choices import state_format_names
from steprule.rules import OPTIMIZERS

COMBINATIONS = [
    *((state_format, "nearest", torch.float32) for state_format in STATE_FORMATS[1:]),
    *(("param", rounding, torch.bfloat16) for rounding in ROUNDINGS[1:]),
    ("int8", "split", torch.bfloat16),
    ("int4", "split24", torch.bfloat16),
    ("int8", "stochastic", torch.float16),
    ("bfloat16", "kahan", torch.float16),
    ("int8", "nearest", torch.float64),
]
combinations = pytest.mark.parametrize(
    ("state_format", "rounding", "dtype"),
    COMBINATIONS,
    ids=lambda x: str(x).removeprefix("torch."),
)
# With which every rule is interpreted, too; the other combinations are with some (test_triton.py).
INTERPRETED = {("int8", "stochastic"), ("int4", "split24"), ("bfloat16", "kahan")}
# How far one engine's number may be from another's where they round one code apart: of the
# largest number of the tensor. 4 bits: a factor of 2. All others: float32's own rounding.
STEPS = {"int4": 1.0, "int8": 2**-3, "bfloat16": 2**-7}


def decoded(run: Run) -> list[Tensor]:
    """All parameters and array slots as numbers."""
    packed = run.optimizer.torch_state_dict()["state"]
    found = [p.detach().double() for p in run.params]
    for entry in packed.values():
        found += [torch.as_tensor(x).double() for key, x in entry.items() if key != "step"]
    return found


def by_turns() -> list[Any]:
    """Rules with all combinations, or with two of them; then each combination has its turn."""
    found, turn = [], 0
    for name in NAMES:
        if takes_every_combination(name):
            chosen = COMBINATIONS
        else:
            chosen = [COMBINATIONS[(turn + i) % len(COMBINATIONS)] for i in range(2)]
            turn += 2
        found += [(name, *each) for each in chosen]
    return found


@pytest.mark.parametrize(
    ("name", "state_format", "rounding", "dtype"),
    by_turns(),
    ids=lambda x: str(x).removeprefix("torch."),
)
def test_engines_agree(name: str, state_format: str, rounding: str, dtype: torch.dtype) -> None:
    options: dict[str, Any] = {"state_format": state_format, "param_rounding": rounding}
    # State in blocks has no kernel where the rule tells rows from columns.
    in_blocks = state_format in ("int8", "int4") and recording_of(name).has_axes
    engines = ("eager", "foreach") if in_blocks else FAST_ENGINES
    if HAS_TRITON and engines is FAST_ENGINES and (state_format, rounding) in INTERPRETED:
        engines = (*engines, "triton")
    runs = [trained(made(name, dtype, engine=engine, **options), 0, 3) for engine in engines]
    for run, engine in zip(runs, engines, strict=True):
        rows = run.optimizer.explain().rows
        assert {row.engine for row in rows} == {engine}, run.optimizer.explain()
    step = max(STEPS.get(state_format, 0.0), 0.0 if dtype is torch.float32 else 2**-7, 1e-5)
    for run in runs[1:]:
        assert run.tensors().keys() == runs[0].tensors().keys()
        for one, other in zip(decoded(runs[0]), decoded(run), strict=True):
            # Where a number is at the edge of two codes, one rounding error moves it: in one of 50,
            # and of fewer in one.
            apart = (one - other).abs() > 1e-5 * one.abs().max()
            assert apart.sum() <= max(1, 0.02 * apart.numel())
            assert ((one - other).abs() <= 1.01 * step * one.abs().max()).all()


def saved(run: Run) -> Any:
    """What comes back from a file: tensors and numbers alone."""
    file = io.BytesIO()
    torch.save(run.optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def with_params_of(run: Run, other: Run) -> Run:
    with torch.no_grad():
        for mine, theirs in zip(run.params, other.params, strict=True):
            mine.copy_(theirs)
    return run


@combinations
@pytest.mark.parametrize("name", NAMES)
def test_resumed_is_uninterrupted(
    name: str, state_format: str, rounding: str, dtype: torch.dtype
) -> None:
    options: dict[str, Any] = {"state_format": state_format, "param_rounding": rounding}
    whole = trained(made(name, dtype, **options), 0, 5)
    first = trained(made(name, dtype, **options), 0, 3)
    second = with_params_of(made(name, dtype, seed=1, **options), first)
    second.optimizer.load_state_dict(saved(first))
    check_same(trained(second, 3, 5), whole)


@pytest.mark.parametrize("state_format", STATE_FORMATS[1:])
def test_copies_go_on_as_the_original(state_format: str) -> None:
    options: dict[str, Any] = {"state_format": state_format, "param_rounding": "split24"}
    run = trained(made("Adam", torch.bfloat16, **options), 0, 2)
    copies = [copy.deepcopy(run.optimizer), pickle.loads(pickle.dumps(run.optimizer))]
    run.optimizer.to("cpu")
    trained(run, 2, 4)
    for optimizer in copies:
        params = optimizer.param_groups[0]["params"]
        check_same(trained(Run(optimizer, params), 2, 4), run)


@pytest.mark.parametrize("engine", ["eager", "triton"] if HAS_TRITON else ["eager"])
def test_random_bits_are_the_same_with_counts_on_the_device(engine: str) -> None:
    options: dict[str, Any] = {"state_format": "int8", "engine": engine}
    run = trained(made("Adam", capturable=True, **options), 0, 3)
    check_same(run, trained(made("Adam", **options), 0, 3))


def test_groups_have_formats_of_their_own() -> None:
    params = [torch.randn(5000, requires_grad=True) for _ in range(3)]
    optimizer = steprule.Adam(
        [{"params": params[:1], "state_format": "int8"}, {"params": params[1:2]}]
    )
    optimizer.add_param_group({"params": params[2:], "state_format": "int4"})
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    kinds = [optimizer.state[p]["exp_avg"].dtype for p in params]
    assert kinds == [torch.uint8, torch.float32, torch.uint8]
    assert [optimizer.state[p]["exp_avg"].numel() for p in params] == [5000, 5000, 2500]
    assert "state_format" not in optimizer.param_groups[1]


def test_a_combined_optimizers_groups_have_formats() -> None:
    matrix = torch.randn(80, 80, requires_grad=True)
    vector = torch.randn(5000, requires_grad=True)
    optimizer = steprule.combine(
        steprule.Muon([matrix], state_format="bfloat16"),
        steprule.AdamW([vector], state_format="int8"),
    )
    for _ in range(3):
        matrix.grad, vector.grad = torch.randn_like(matrix), torch.randn_like(vector)
        optimizer.step()
    assert optimizer.state[matrix]["momentum_buffer"].dtype is torch.bfloat16
    assert optimizer.state[vector]["exp_avg:int8"].dtype is torch.uint8
    again = copy.deepcopy(optimizer)
    again.load_state_dict(optimizer.state_dict())
    assert again.state_bytes() == optimizer.state_bytes()


@pytest.mark.parametrize("before", STATE_FORMATS)
@pytest.mark.parametrize("after", STATE_FORMATS)
def test_state_is_loaded_across_formats(before: str, after: str) -> None:
    """Within the coarser of the two formats' steps, and in the format of the one who loads."""
    run = trained(made("Adam", state_format=before), 0, 4)
    other = with_params_of(made("Adam", state_format=after), run)
    other.optimizer.load_state_dict(saved(run))
    step = max(STEPS.get(before, 0.0), STEPS.get(after, 0.0))
    for one, two in zip(decoded(run), decoded(other), strict=True):
        assert ((one - two).abs() <= (step + 1e-6) * one.abs() + 1e-3 * one.abs().max()).all()
    kinds = {key: x.dtype for key, x in trained(other, 4, 5).tensors().items()}
    fresh = trained(made("Adam", state_format=after), 0, 1).tensors()
    assert kinds == {key: x.dtype for key, x in fresh.items()}


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("before", ROUNDINGS)
def test_what_is_beside_parameters_is_loaded_across_roundings(before: str, rounding: str) -> None:
    run = trained(made("SGD", torch.bfloat16, param_rounding=before, lr=1e-3), 0, 4)
    other = with_params_of(made("SGD", torch.bfloat16, param_rounding=rounding, lr=1e-3), run)
    other.optimizer.load_state_dict(saved(run))
    trained(other, 4, 5)
    kept = {key for key in other.optimizer.state[other.params[0]] if ":" in key}
    assert kept == ({f"param:{rounding}"} if rounding not in ("nearest", "stochastic") else set())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("state_format", ["int8", "bfloat16"])
def test_state_goes_to_torch_and_back(name: str, state_format: str) -> None:
    theirs_class = needs_torchs(name)
    run = trained(made(name, state_format=state_format), 0, 3)
    packed = run.optimizer.torch_state_dict()
    twins = [p.detach().clone().requires_grad_() for p in run.params]
    theirs = theirs_class(twins, **FULL.get(name, {}))
    theirs.load_state_dict(packed)
    for p in twins:
        p.grad = torch.ones_like(p)
    theirs.step()
    for entry in theirs.state.values():
        assert all(torch.is_floating_point(x) for x in entry.values() if isinstance(x, Tensor))
        assert not any(":" in key for key in entry)
    back = made(name, state_format=state_format)
    back.optimizer.load_state_dict(theirs.state_dict())
    trained(back, 3, 4)


def test_a_changed_format_takes_effect_at_the_next_step() -> None:
    run = trained(made("Adam", state_format="int8"), 0, 2)
    for state_format in ("bfloat16", "int4", "param", "int8"):
        run.optimizer.param_groups[0]["state_format"] = state_format
        trained(run, 2, 3)
        fresh = trained(made("Adam", state_format=state_format), 0, 1)
        kinds = [{k: x.dtype for k, x in r.tensors().items()} for r in (run, fresh)]
        assert kinds[0] == kinds[1]


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
@pytest.mark.parametrize("name", NAMES)
def test_split_is_the_float32_run_bit_for_bit(name: str, engine: str) -> None:
    options: dict[str, Any] = {"engine": engine, "state_format": "float32"}
    halves = made(name, torch.bfloat16, param_rounding="split", **options)
    wholes = made(name, **options)
    for whole, half in zip(wholes.params, halves.params, strict=True):
        whole.data = half.detach().float()
    if "machine_eps" in OPTIMIZERS[name.lower()].rule.needs:  # type: ignore[union-attr]
        pytest.skip("the rule computes with the resolution of the parameter's dtype")
    for k in range(20):
        generator = torch.Generator().manual_seed(k)
        for whole, half in zip(wholes.params, halves.params, strict=True):
            half.grad = torch.randn(half.shape, generator=generator).bfloat16()
            whole.grad = half.grad.float()
        wholes.optimizer.step()
        halves.optimizer.step()
    for whole, half in zip(wholes.params, halves.params, strict=True):
        rest = halves.optimizer.state[half]["param:split"]
        bits = (half.detach().view(torch.int16).int() << 16) + rest
        assert torch.equal(bits.view(torch.float32), whole.detach())
        for key, value in wholes.optimizer.state[whole].items():
            assert torch.equal(torch.as_tensor(halves.optimizer.state[half][key]), value)


@pytest.mark.parametrize(
    ("state_format", "rounding"), [("int8", "nearest"), ("int4", "split24"), ("bfloat16", "kahan")]
)
def test_native_steps_store_the_same_bits(state_format: str, rounding: str) -> None:
    needs_native_loops()
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    options: dict[str, Any] = {"state_format": state_format, "param_rounding": rounding}
    found = []
    try:
        for is_native in (True, False):
            steprule.set_native_loops(is_native)
            run = trained(made("Adam", dtype, clip_grad_norm=1.0, **options), 0, 30)
            plan = run.optimizer._plan
            assert plan is not None
            assert (plan._whole is not None and plan._whole.is_ready()) is is_native
            found.append(run)
    finally:
        steprule.set_native_loops(True)
    check_same(*found)


@pytest.mark.parametrize(
    ("state_format", "rounding"), [("int8", "nearest"), ("bfloat16", "split"), ("int4", "split24")]
)
def test_muon_agrees_with_itself(state_format: str, rounding: str) -> None:
    """A matrix operation in the midst: its iteration is in bfloat16, in other orders."""
    dtype = torch.float32 if rounding == "nearest" else torch.bfloat16
    found = []
    for engine in ENGINES:
        torch.manual_seed(0)
        param = torch.randn(80, 100).to(dtype).requires_grad_()
        optimizer = steprule.Muon(
            [param], engine=engine, state_format=state_format, param_rounding=rounding
        )
        for k in range(4):
            generator = torch.Generator().manual_seed(k)
            param.grad = torch.randn(80, 100, generator=generator).to(dtype)
            optimizer.step()
        assert optimizer.explain().rows[0].engine == engine
        found.append(param.detach().float())
    for other in found[1:]:
        assert (other - found[0]).abs().max() <= 2**-6


def test_small_updates_of_bfloat16_count() -> None:
    """1000 updates of 2**-9 of what would be rounded away."""
    for rounding, bound in (
        ("stochastic", 0.2),
        ("kahan", 0.02),
        ("split", 1e-6),
        ("split24", 0.2),
    ):
        param = torch.ones(4096).bfloat16().requires_grad_()
        optimizer = steprule.SGD([param], lr=2.0**-17, param_rounding=rounding)
        for _ in range(1000):
            param.grad = torch.ones_like(param)
            optimizer.step()
        moved = 1 - param.detach().double().mean().item()
        exact = 1000 * 2.0**-17
        half_a_gap = 2.0**-9 if rounding not in ("stochastic",) else 0.0
        assert abs(moved - exact) <= bound * exact + half_a_gap, rounding
    nearest = torch.ones(10).bfloat16().requires_grad_()
    optimizer = steprule.SGD([nearest], lr=2.0**-17)
    nearest.grad = torch.ones_like(nearest)
    for _ in range(10):
        optimizer.step()
    assert (nearest == 1).all()


def followed(state_format: str, beta2: float = 0.999) -> Tensor:
    """sqrt(exp_avg_sq) over its float32 twin after 200 steps of a noisy quadratic."""
    found = []
    for chosen in (state_format, "float32"):
        torch.manual_seed(0)
        scale = torch.logspace(-2, 0, 20_000)
        param = torch.zeros(20_000, requires_grad=True)
        optimizer = steprule.Adam([param], lr=1e-3, betas=(0.9, beta2), state_format=chosen)
        for _ in range(200):
            param.grad = scale * torch.randn(20_000)
            optimizer.step()
        found.append(optimizer.torch_state_dict()["state"][0]["exp_avg_sq"].sqrt())
    return found[0] / found[1]


@pytest.mark.parametrize("state_format", ["bfloat16", "int8"])
def test_the_second_moment_is_followed_truthfully(state_format: str) -> None:
    ratio = followed(state_format)
    within = ((ratio > 0.7) & (ratio < 1.4)).double().mean().item()
    assert within >= 0.98
    assert 0.97 < ratio.mean().item() < 1.03


@pytest.mark.parametrize("name", NAMES)
def test_state_bytes_say_what_is_stored(name: str) -> None:
    rule = OPTIMIZERS[name.lower()].rule
    assert rule is not None
    cls: Any = OPTIMIZERS[name.lower()]
    params = [torch.zeros(1000, 100, requires_grad=True), torch.zeros(10, requires_grad=True)]
    for state_format, each in (("float32", 4.0), ("bfloat16", 2.0), ("int8", 1.01), ("int4", 0.51)):
        optimizer = cls(params, state_format=state_format, **FULL.get(name, {}))
        optimizer.init_state()
        options = {**cls.extras, **optimizer.param_groups[0]}
        for row in optimizer.state_bytes().rows:
            slot = rule.slots.get(row.slot)
            if slot is None or slot.shape != "param" or row.elements < 100_000:
                continue
            expected = 4.0 if slot.is_precise(options) else each
            assert row.bytes / row.elements == pytest.approx(expected, rel=0.01), (row, name)
            if slot.full_precision and slot.is_precise(options):
                assert isinstance(slot.full_precision, str)  # the docs say why
        total = optimizer.state_bytes()
        tensors = [x for e in optimizer.state.values() for x in e.values() if isinstance(x, Tensor)]
        assert int(total) == sum(x.numel() * x.element_size() for x in tensors)
        assert f"{total.total:,}" in str(total)


@pytest.mark.parametrize("state_format", STATE_FORMATS)
def test_a_checkpoint_is_as_small_as_the_state(state_format: str) -> None:
    param = torch.zeros(300, 1000, dtype=torch.bfloat16, requires_grad=True)
    optimizer = steprule.Adam([param], state_format=state_format, param_rounding="split24")
    param.grad = torch.ones_like(param)
    optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    assert file.tell() <= int(optimizer.state_bytes()) + 8192


def test_small_tensors_keep_full_precision() -> None:
    params = [torch.zeros(4095, requires_grad=True), torch.zeros(4096, requires_grad=True)]
    optimizer = steprule.Adam(params, state_format="int8")
    optimizer.init_state()
    assert [optimizer.state[p]["exp_avg"].dtype for p in params] == [torch.float32, torch.uint8]
    optimizer = steprule.Adam(params, state_format="int8", state_format_min_size=0)
    optimizer.init_state()
    assert {optimizer.state[p]["exp_avg"].dtype for p in params} == {torch.uint8}


def test_a_transposed_parameter_has_formats_too() -> None:
    """Its elements count in the order of its axes, so that another engine than the kernel runs."""
    torch.manual_seed(0)
    plain = torch.randn(70, 100)
    runs = []
    for value in (plain.clone(), plain.t().contiguous().t()):
        param = value.requires_grad_()
        optimizer = steprule.SGD(
            [param], lr=2**-3, momentum=0.5, state_format="int8", engine="auto"
        )
        for k in range(3):
            param.grad = torch.randn(70, 100, generator=torch.Generator().manual_seed(k))
            optimizer.step()
        runs.append((param.detach(), optimizer.state[param]["momentum_buffer"]))
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


class Half:
    """A format of a user's own: bfloat16 cut off, without text for kernels."""

    name = "truncated"
    columns = (Column("", torch.int16),)
    is_random = False

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        return (columns[0].int() << 16).view(torch.float32).to(compute)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        bits = value.float().contiguous().view(torch.int32)
        columns[0].copy_(bits >> 16)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"state_format": "int7"}, ValueError, "state_format must be one of 'param', 'float32'"),
        ({"state_format": 8}, ValueError, "state_format must be one of"),
        ({"param_rounding": "up"}, ValueError, "param_rounding must be one of 'nearest'"),
        ({"rounding_seed": 0.5}, TypeError, "rounding_seed must be an integer"),
        ({"state_format_min_size": True}, TypeError, "state_format_min_size must be an integer"),
        ({"state_fromat": "int8"}, TypeError, "did you mean 'state_format'"),
        (
            {"state_format": "int8", "differentiable": True},
            ValueError,
            "'param' or 'float32' and param_rounding 'nearest'",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    options: dict[str, Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        steprule.Adam([torch.zeros(3, requires_grad=True)], **options)


@pytest.mark.parametrize(
    ("param", "grad", "options", "text"),
    [
        (
            torch.zeros(3, dtype=torch.complex64),
            None,
            {"state_format": "int8"},
            "is for real numbers, but parameter 0 of group 0 is torch.complex64",
        ),
        (
            torch.zeros(3, dtype=torch.float16),
            None,
            {"param_rounding": "split"},
            "parameter 0 of group 0 is float16: take 'kahan' or 'stochastic'",
        ),
        (
            torch.zeros(3, 2),
            torch.sparse_coo_tensor([[0]], [[1.0, 1.0]], (3, 2), check_invariants=True),
            {"state_format": "int8"},
            "are for dense gradients: parameter 0 of group 0 has a sparse one",
        ),
    ],
)
def test_parameters_that_cannot_be_stored_so_are_named(
    param: Tensor, grad: Tensor | None, options: dict[str, Any], text: str
) -> None:
    param = param.clone().requires_grad_()
    if grad is None:
        with pytest.raises(ValueError, match=text):
            steprule.SGD([param], momentum=0.9, **options)
    optimizer = steprule.SGD([param], momentum=0.9)
    optimizer.param_groups[0].update(options)
    param.grad = torch.zeros_like(param) if grad is None else grad
    with pytest.raises(RuntimeError, match=text):
        optimizer.step()
    assert not optimizer.state


def test_complex_parameters_take_float32() -> None:
    param = torch.randn(5000, dtype=torch.complex64).requires_grad_()
    optimizer = steprule.Adam([param], state_format="float32")
    param.grad = torch.randn_like(param)
    optimizer.step()
    assert optimizer.state[param]["exp_avg"].dtype is torch.complex64


def test_a_format_of_ones_own() -> None:
    if "truncated" not in state_format_names():
        steprule.register_state_format("truncated", Half())
    runs = [
        trained(made("Adam", state_format="truncated", engine=engine), 0, 3)
        for engine in ("eager", "foreach")
    ]
    check_close = torch.testing.assert_close
    for one, other in zip(*(run.tensors().values() for run in runs), strict=True):
        check_close(one.double(), other.double(), rtol=1e-2, atol=2.0)
    assert "has no text for kernels" in str(
        trained(made("Adam", state_format="truncated"), 0, 1).optimizer.explain()
    )
    resumed = made("Adam", state_format="truncated")
    resumed.optimizer.load_state_dict(saved(runs[0]))
    with pytest.raises(ValueError, match="known already"):
        steprule.register_state_format("int8", Half())


def test_a_resized_parameter_or_a_column_of_another_kind_is_refused() -> None:
    """Before anything is changed, and before a kernel reads past its end."""
    param = torch.zeros(5000, dtype=torch.bfloat16, requires_grad=True)
    optimizer = steprule.SGD([param], param_rounding="split", lr=0.1)
    param.grad = torch.ones_like(param)
    optimizer.step()
    param.data = torch.zeros(9000, dtype=torch.bfloat16)
    param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"'param:split' of parameter 0 .* has shape .5000,."):
        optimizer.step()
    assert (param == 0).all()
    param = torch.zeros(5000, requires_grad=True)
    adam = steprule.Adam([param], state_format="int8")
    param.grad = torch.ones_like(param)
    adam.step()
    adam.state[param]["exp_avg"] = torch.zeros(5000)
    with pytest.raises(RuntimeError, match=r"is torch.float32, in format 'int8' it is torch.uint8"):
        adam.step()


def test_a_rest_of_another_size_is_not_loaded() -> None:
    run = trained(made("SGD", torch.bfloat16, param_rounding="split", momentum=0.0), 0, 1)
    packed = run.optimizer.state_dict()
    packed["state"][0] = {"param:split": torch.zeros(3, dtype=torch.int16)}
    before = run.tensors()
    with pytest.raises(ValueError, match=r"loaded state 'param:split' of parameter 0 .* \(3,\)"):
        run.optimizer.load_state_dict(packed)
    for odd in ([1, 2], torch.zeros(SIZES[0])):
        packed["state"][0] = {"param:split": odd}
        with pytest.raises(ValueError, match=r"loaded state 'param' of parameter 0 .* no format"):
            run.optimizer.load_state_dict(packed)
    after = run.tensors()
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_what_was_kept_for_weights_of_another_dtype_is_let_go_of() -> None:
    for rounding in ("kahan", "split"):
        param = torch.full((100,), 3.0).bfloat16().requires_grad_()
        optimizer = steprule.SGD([param], lr=1e-3, param_rounding=rounding)
        param.grad = torch.ones_like(param)
        optimizer.step()
        packed = copy.deepcopy(optimizer.state_dict())
        optimizer.param_groups[0]["param_rounding"] = "kahan"
        param.data = param.data.half()
        param.grad = torch.zeros_like(param)
        optimizer.step()
        half = torch.full((100,), 3.0).half().requires_grad_()
        loading = steprule.SGD([half], lr=1e-3, param_rounding="kahan")
        loading.load_state_dict(packed)
        half.grad = torch.zeros_like(half)
        loading.step()
        assert ((param - 3).abs() < 0.02).all()
        assert (half == 3).all()


def test_without_slots_nothing_is_left_beside_the_weights() -> None:
    run = trained(made("SGD", torch.bfloat16, param_rounding="split", momentum=0.0), 0, 2)
    run.optimizer.param_groups[0]["param_rounding"] = "nearest"
    trained(run, 2, 3)
    assert not any(":" in str(key) for entry in run.optimizer.state.values() for key in entry)


def test_torchs_default_device_does_not_matter() -> None:
    plain: dict[str, Any] = {"state_format": "int8", "param_rounding": "split24"}
    runs = []
    for device in ("cpu", "meta"):
        run = made("SGD", torch.bfloat16, **plain)
        grads = [torch.randn(size).bfloat16() for size in SIZES]
        torch.set_default_device(device)
        try:
            for param, grad in zip(run.params, grads, strict=True):
                param.grad = grad
            run.optimizer.step()
        finally:
            torch.set_default_device(None)
        runs.append(run)
    check_same(*runs)


def test_a_count_that_came_as_a_number_is_kept() -> None:
    run = trained(made("SGD", state_format="int8"), 0, 3)
    packed = copy.deepcopy(run.optimizer.state_dict())
    for entry in packed["state"].values():
        if "rounding_step" in entry:
            entry["rounding_step"] = int(entry["rounding_step"])
    other = with_params_of(made("SGD", state_format="int8"), run)
    other.optimizer.load_state_dict(packed)
    check_same(trained(other, 3, 4), trained(run, 3, 4))


def test_roundings_of_half_precision_leave_sparse_float32_alone() -> None:
    table = torch.zeros(5, 2, requires_grad=True)
    optimizer = steprule.SGD([table], lr=1.0, param_rounding="split")
    table.grad = torch.sparse_coo_tensor([[1]], [[1.0, 1.0]], (5, 2), check_invariants=True)
    optimizer.step()
    assert table[1].tolist() == [-1.0, -1.0]
    with pytest.raises(ValueError, match="SparseAdam takes sparse gradients only"):
        steprule.SparseAdam([table], state_format="int8")


def test_formats_that_tell_too_little_are_refused() -> None:
    class Lone(Half):
        columns = (Column("", torch.float16),)

    class Unhashable(Half):
        columns = (Column("", torch.int32),)
        __hash__ = None  # type: ignore[assignment]

    class Other(Half):
        columns = (Column("", torch.int64),)

    with pytest.raises(ValueError, match="can't be told from plain numbers"):
        steprule.register_state_format("lone", Lone())
    with pytest.raises(TypeError, match="unhashable"):
        steprule.register_state_format("unhashable", Unhashable())
    with pytest.raises(ValueError, match="have the same columns"):
        steprule.register_state_format("twins", Other(), Other())
    assert not {"lone", "unhashable", "twins"} & set(state_format_names())


def test_state_in_a_format_that_nobody_knows_is_refused() -> None:
    run = trained(made("Adam"), 0, 1)
    packed = run.optimizer.state_dict()
    packed["state"][0]["exp_avg:fancy"] = torch.zeros(3)
    with pytest.raises(ValueError, match="must be registered first"):
        made("Adam").optimizer.load_state_dict(packed)
