"""Running averages of parameters: kept in the step itself, on every engine and in every format.

The reference is the formula, ``ema = decay * ema + (1 - decay) * param``, on what the parameters
were after each step, and torch's ``AveragedModel`` beside it.
"""

from __future__ import annotations

import copy
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENGINES, engines_of, gradients, make_params, rule_optimizers
from nested_values import same
from torch import Tensor

import steprule
from steprule.formats.choices import state_format_names
from steprule.language.averaging import with_average
from steprule.language.rule import derived_rule
from steprule.rules import OPTIMIZERS
from steprule.schedules import linear

DECAY = 0.8


def averages(optimizer: Any, params: list[Tensor]) -> list[Tensor]:
    with optimizer.averaged():
        return [param.detach().clone() for param in params]


def expected(
    params: list[Tensor], optimizer: Any, steps: int, decay: float = DECAY
) -> list[Tensor]:
    """Step, and average by the formula."""
    mean = [param.detach().double().clone() for param in params]
    for _ in gradients(params, steps):
        optimizer.step()
        mean = [
            decay * m + (1 - decay) * p.detach().double() for m, p in zip(mean, params, strict=True)
        ]
    return mean


@pytest.mark.parametrize("name", rule_optimizers())
def test_the_average_follows_its_formula_and_changes_nothing_else(name: str) -> None:
    for engine in engines_of(name):
        plain = make_params(name)
        without = OPTIMIZERS[name.lower()](plain, engine=engine)
        params = make_params(name)
        optimizer = OPTIMIZERS[name.lower()](params, engine=engine, ema_decay=DECAY)
        mean = expected(params, optimizer, 5)
        assert {row.engine for row in optimizer.explain().rows} == {engine}
        for found, wanted in zip(averages(optimizer, params), mean, strict=True):
            # float32: a rounding of half an ulp a step, of numbers up to a few units.
            torch.testing.assert_close(found.double(), wanted, rtol=1e-6, atol=1e-6)
        for _ in gradients(plain, 5):
            without.step()
        tight = {"rtol": 1e-6, "atol": 1e-6} if engine != "eager" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(params, plain, **tight)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_pass_over_memory_of_its_own_is_not_made(engine: str) -> None:
    """The kernel of the rule is the one that averages: torch's formula beside it agrees in bits."""
    params = make_params("Adam")
    optimizer = steprule.Adam(params, ema_decay=DECAY, engine=engine)
    mean = [param.detach().clone() for param in params]
    for _ in gradients(params, 3):
        optimizer.step()
        mean = [(DECAY * m + (1 - DECAY) * p).detach() for m, p in zip(mean, params, strict=True)]
    if engine == "fused":
        assert len(optimizer._plan.runners) == 1
    torch.testing.assert_close(averages(optimizer, params), mean, rtol=3e-7, atol=3e-7)


def test_torchs_averaged_model_agrees() -> None:
    model = torch.nn.Linear(4, 3)
    averaged = steprule.swa_utils.AveragedModel(
        model, multi_avg_fn=steprule.swa_utils.get_ema_multi_avg_fn(DECAY)
    )
    # torch's begins with the parameters after the first step: with a decay of 0 then.
    decay = linear(0.0, DECAY, steps=1)
    optimizer = steprule.AdamW(model.parameters(), lr=0.1, ema_decay=decay)
    for _ in gradients(list(model.parameters()), 6):
        optimizer.step()
        averaged.update_parameters(model)
    with optimizer.averaged():
        torch.testing.assert_close(
            list(model.parameters()), list(averaged.module.parameters()), rtol=1e-6, atol=1e-7
        )


@pytest.mark.parametrize("ema_format", state_format_names())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_the_average_is_stored_in_a_format(dtype: torch.dtype, ema_format: str) -> None:
    param = torch.linspace(1, 2, 5000).to(dtype).requires_grad_()
    optimizer = steprule.SGD([param], lr=0.01, ema_decay=DECAY, ema_format=ema_format)
    mean = expected([param], optimizer, 10)
    (found,) = averages(optimizer, [param])
    # Rounding at random adds up, over 1 / (1 - decay) steps. A code of 8 bits is 2**-4 wide of its
    # number, one of 4 bits as wide as the number.
    step = {"int8": 2**-3, "int4": 1.0, "bfloat16": 2**-7}.get(ema_format, 1e-6)
    if dtype is torch.bfloat16:
        step = max(step, 2**-7)  # where it is put in the parameter's place
    assert ((found.double() - mean[0]).abs() <= 5 * step * mean[0].abs()).all()
    words = {row.format for row in optimizer.state_bytes().rows if row.slot == "param_ema"}
    wide = {"float64": "float64"}.get(str(dtype)[6:], "float32")
    named = {"float32": wide, "param": str(dtype)[6:]}.get(ema_format)
    assert named is None or words == {named}


def test_small_steps_of_bfloat16_reach_the_average() -> None:
    """In bfloat16 itself the average would stand still: a thousandth is less than its step."""
    param = torch.ones(100, dtype=torch.bfloat16, requires_grad=True)
    optimizer = steprule.SGD([param], lr=1.0, ema_decay=0.999)
    param.grad = torch.full_like(param, -1.0)
    optimizer.step()
    assert optimizer.state[param]["param_ema"].dtype is torch.float32
    torch.testing.assert_close(optimizer.state[param]["param_ema"], torch.full((100,), 1.001))


@pytest.mark.parametrize("rounding", ["stochastic", "kahan", "split", "split24"])
def test_the_parameters_come_back_bit_for_bit(rounding: str) -> None:
    params = make_params("Adam", torch.bfloat16)
    optimizer = steprule.Adam(params, lr=0.1, ema_decay=DECAY, param_rounding=rounding)
    for _ in gradients(params, 3):
        optimizer.step()
    before = copy.deepcopy([[p.detach() for p in params], optimizer.state_dict()])
    addresses = [p.data_ptr() for p in params]
    with optimizer.averaged():
        assert not same([p.detach() for p in params], before[0])
    assert same([[p.detach() for p in params], optimizer.state_dict()], before)
    assert [p.data_ptr() for p in params] == addresses
    with pytest.raises(ZeroDivisionError), optimizer.averaged():
        raise ZeroDivisionError
    assert same([[p.detach() for p in params], optimizer.state_dict()], before)


def test_complex_parameters_are_averaged() -> None:
    params = make_params("Adam", torch.complex64)
    optimizer = steprule.Adam(params, ema_decay=DECAY)
    mean = [param.detach().clone() for param in params]
    for _ in gradients(params, 3):
        optimizer.step()
        mean = [(DECAY * m + (1 - DECAY) * p).detach() for m, p in zip(mean, params, strict=True)]
    torch.testing.assert_close(averages(optimizer, params), mean, rtol=1e-6, atol=1e-6)


def test_a_step_among_averages_is_refused() -> None:
    (param,) = params = [torch.ones(3, requires_grad=True)]
    optimizer = steprule.Adam(params, ema_decay=0.9)
    for _ in gradients(params, 2):
        optimizer.step()
    before = param.detach().clone()
    with optimizer.averaged():
        with pytest.raises(RuntimeError, match=r"an update would be lost: step after the block"):
            optimizer.step()
        with pytest.raises(RuntimeError, match="in force already"), optimizer.averaged():
            pass
    assert torch.equal(param, before)
    optimizer.step()
    assert optimizer.state[param]["step"] == 3


def test_steps_in_the_backward_pass_average_and_are_refused_among_averages() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = steprule.step_in_backward(model, lambda p: steprule.SGD(p, lr=0.1, ema_decay=0.5))
    before = model.weight.detach().clone()
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    mean = (before + model.weight.detach()) / 2
    with optimizer.averaged():
        torch.testing.assert_close(model.weight.detach(), mean)
        with pytest.raises(RuntimeError, match="an update would be lost"):
            model(torch.ones(1, 3)).sum().backward()
        assert "parameter 0" in str(optimizer.explain())


def test_parameters_that_share_memory_come_back() -> None:
    one = torch.nn.Parameter(torch.ones(4))
    other = torch.nn.Parameter(one.data)
    optimizer = steprule.SGD([one, other], lr=0.1, ema_decay=0.5)
    for _ in range(3):
        one.grad = other.grad = torch.ones(4)
        optimizer.step()
    before = one.detach().clone()
    with optimizer.averaged():
        assert not torch.equal(one, before)
    assert torch.equal(one, before)


def test_there_must_be_averages() -> None:
    optimizer = steprule.Adam([torch.ones(3, requires_grad=True)])
    with (
        pytest.raises(RuntimeError, match=re.escape("pass ema_decay=0.999 to the optimizer")),
        optimizer.averaged(),
    ):
        pass
    steprule.Adam([torch.ones(3, requires_grad=True)], ema_decay=0.9)


def test_before_the_first_step_the_parameters_are_their_average() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.Adam([param], ema_decay=0.9)
    with optimizer.averaged():
        assert torch.equal(param, torch.ones(3))


def test_groups_have_averages_of_their_own() -> None:
    a, b = (torch.ones(3, requires_grad=True) for _ in range(2))
    optimizer = steprule.Adam([{"params": [a], "ema_decay": 0.5}, {"params": [b]}], lr=0.1)
    for _ in gradients([a, b], 2):
        optimizer.step()
    assert "param_ema" in optimizer.state[a]
    assert "param_ema" not in optimizer.state[b]
    kept = b.detach().clone()
    with optimizer.averaged():
        assert torch.equal(b, kept)
    optimizer.param_groups[1]["ema_decay"] = 0.5  # from here on
    for _ in gradients([a, b], 1):
        optimizer.step()
    torch.testing.assert_close(optimizer.state[b]["param_ema"], (kept + b.detach()) / 2)
    optimizer.param_groups[0]["ema_decay"] = None
    kept = optimizer.state[a]["param_ema"].clone()
    for _ in gradients([a, b], 1):
        optimizer.step()
    with optimizer.averaged():
        assert not torch.equal(a, kept)


def test_sums_over_all_groups_are_over_those_with_averages_too() -> None:
    def run(**options: Any) -> list[Tensor]:
        params = make_params("Prodigy")
        groups = [{"params": params[:2], **options}, {"params": params[2:]}]
        optimizer = steprule.Prodigy(groups)
        for _ in gradients(params, 4):
            optimizer.step()
        return params

    torch.testing.assert_close(run(ema_decay=0.9), run(), rtol=1e-6, atol=1e-7)


def test_a_combined_optimizer_averages() -> None:
    params = [torch.randn(4, 4, requires_grad=True), torch.randn(4, requires_grad=True)]
    optimizer = steprule.combine(
        steprule.Muon(params[:1], ema_decay=DECAY), steprule.AdamW(params[1:], ema_decay=DECAY)
    )
    mean = expected(params, optimizer, 3)
    torch.testing.assert_close(
        [x.double() for x in averages(optimizer, params)], mean, rtol=1e-6, atol=1e-6
    )


def test_a_sparse_gradient_is_made_dense() -> None:
    param = torch.ones(4, 2, requires_grad=True)
    optimizer = steprule.SGD([param], lr=0.5, ema_decay=0.5)
    for _ in range(2):
        param.grad = torch.eye(4, 2).to_sparse(1)
        optimizer.step()
    assert torch.equal(optimizer.state[param]["param_ema"][2:], torch.ones(2, 2))
    assert optimizer.state[param]["param_ema"][0, 0] == (1 / 4 + 0.5 / 4 + 0.0 / 2)


def test_averages_are_saved_and_resumed(tmp_path: Path) -> None:
    def made(seed: int, **options: Any) -> tuple[list[Tensor], Any]:
        params = make_params("Adam", seed=seed)
        return params, steprule.Adam(params, ema_decay=DECAY, **options)

    for options in ({}, {"ema_format": "int8", "state_format_min_size": 1}):
        params, optimizer = made(0, **options)
        for _ in gradients(params, 3):
            optimizer.step()
        optimizer.save(tmp_path / "file")
        others, resumed = made(1, **options)
        with torch.no_grad():
            for other, param in zip(others, params, strict=True):
                other.copy_(param)
        resumed.load(tmp_path / "file")
        copied = pickle.loads(pickle.dumps(optimizer))
        for run in (
            (params, optimizer),
            (others, resumed),
            (copied.param_groups[0]["params"], copied),
        ):
            for _ in gradients(run[0], 2, seed=9):
                run[1].step()
        assert same(averages(resumed, others), averages(optimizer, params))
        assert same(copied.state_dict(), optimizer.state_dict())


def test_averages_go_across_formats() -> None:
    params = make_params("Adam")
    optimizer = steprule.Adam(params, ema_decay=DECAY, ema_format="bfloat16")
    for _ in gradients(params, 3):
        optimizer.step()
    back = steprule.Adam(make_params("Adam"))
    back.load_state_dict(optimizer.state_dict())
    assert back.param_groups[0]["ema_decay"] == DECAY
    one = optimizer.state[params[0]]["param_ema"]
    other = back.state[back.param_groups[0]["params"][0]]["param_ema"]
    assert other.dtype is torch.float32
    torch.testing.assert_close(other, one.float())


def test_a_run_without_averages_can_begin_to_keep_them() -> None:
    params = make_params("Adam")
    plain = steprule.Adam(params)
    for _ in gradients(params, 2):
        plain.step()
    optimizer = steprule.Adam(params, ema_decay=0.5)
    optimizer.load_state_dict(plain.state_dict())
    mean = expected(params, optimizer, 1, decay=0.5)
    torch.testing.assert_close([x.double() for x in averages(optimizer, params)], mean)
    stops = steprule.Adam(params)
    stops.load_state_dict(optimizer.state_dict(), keep=["ema_decay"])
    assert stops.param_groups[0].get("ema_decay") is None
    for _ in gradients(params, 1):
        stops.step()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"ema_decay": 1.5},
            ValueError,
            r"ema_decay value: 1\.5 \(ema_decay must be in \[0, 1\]\)",
        ),
        ({"ema_decay": "0.9"}, TypeError, "ema_decay must be a number, got str"),
        ({"ema_decay": float("nan")}, ValueError, "ema_decay value: nan"),
        ({"ema_decay": 0.9, "ema_format": "int9"}, ValueError, "ema_format must be one of 'param'"),
        ({"ema_decay": 0.9, "ema_format": linear(0, 1, steps=2)}, ValueError, "ema_format must be"),
    ],
)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        steprule.Adam([torch.ones(3, requires_grad=True)], **options)


def test_what_cannot_be_averaged_is_refused() -> None:
    embedding = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(ValueError, match="sparse gradients only, for which there are no formats"):
        steprule.SparseAdam([embedding], ema_decay=0.9)
    with pytest.raises(ValueError, match=r"ema_format='int8' is for real numbers"):
        steprule.Adam(
            [torch.ones(3, dtype=torch.complex64, requires_grad=True)],
            ema_decay=0.9,
            ema_format="int8",
        )
    with pytest.raises(TypeError, match="ema_decay"):
        steprule.LBFGS([embedding], ema_decay=0.9)


def test_a_rule_of_ones_own_is_averaged_without_knowing() -> None:
    @steprule.rule
    def plain(param: Any, grad: Any, *, lr: float) -> Any:
        return param - lr * grad

    assert derived_rule(plain, with_average) is derived_rule(plain, with_average)
    Plain = steprule.make_optimizer(plain, lr=0.1)  # noqa: N806
    params = [torch.ones(3, requires_grad=True)]
    optimizer = Plain(params, ema_decay=DECAY)
    mean = expected(params, optimizer, 3)
    torch.testing.assert_close([x.double() for x in averages(optimizer, params)], mean)
