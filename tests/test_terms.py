"""Terms that every rule shares: caution, cautious weight decay, decoupled decay of either scale.

The references are the papers' formulas, applied by hand to what the plain rule does.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import (
    ENGINES,
    FAST_ENGINES,
    engines_of,
    gradients,
    make_params,
    recording_of,
    rule_optimizers,
)
from torch import Tensor

import steprule
from steprule.rules import OPTIMIZERS

STEPS = 4
#: Those whose state follows the new parameter, which a mask afterwards would leave behind.
AVERAGING = rule_optimizers(lambda rule: rule.averages_param)
TIGHT = {"rtol": 1e-12, "atol": 1e-13}
#: Rules of each kind: elements alone, sums of a parameter, of all, along axes, whole matrices.
KINDS = ("SGD", "AdamW", "LAMB", "Prodigy", "Adafactor", "Muon")


def decays(name: str) -> bool:
    """Whether weight decay is the shared term's in this optimizer."""
    cls = OPTIMIZERS[name.lower()]
    assert cls.rule is not None
    has_decay = "weight_decay" in cls(make_params(name)).defaults
    return has_decay and "weight_decay" not in cls.rule.needs


WITH_DECAY = [name for name in rule_optimizers() if decays(name)]
WITHOUT = [name for name in rule_optimizers() if not decays(name)]


def made(name: str, params: list[Tensor], **options: Any) -> Any:
    return OPTIMIZERS[name.lower()](params, **options)


def doubles(name: str) -> list[Tensor]:
    return [p.detach().double().requires_grad_() for p in make_params(name)]


def masked(step: Tensor, grad: Tensor) -> Tensor:
    """The cautious step of a plain one, as the authors' repository has it."""
    mask = (step * grad > 0).to(step.dtype)
    return step * mask / mask.mean().clamp(min=1e-3)


@pytest.mark.parametrize("name", [n for n in rule_optimizers() if n not in AVERAGING])
def test_a_cautious_step_is_the_plain_one_where_it_agrees_with_the_gradient(name: str) -> None:
    """From the same parameters and state; which the next plain step is tried from again."""
    params = doubles(name)
    optimizer = made(name, params, engine="eager", cautious=True)
    for group in optimizer.param_groups:
        group["weight_decay"] = 0.0
    for _ in gradients(params, STEPS):
        plain = [p.detach().clone().requires_grad_() for p in params]
        twin = made(name, plain, engine="eager")
        twin.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        before = [p.detach().clone() for p in params]
        for p, param in zip(plain, params, strict=True):
            p.grad = param.grad
        for group in twin.param_groups:
            group["cautious"] = False
        twin.step()
        optimizer.step()
        for start, p, param in zip(before, plain, params, strict=True):
            wanted = start - masked(start - p.detach(), param.grad)
            torch.testing.assert_close(param.detach(), wanted, **TIGHT)


@pytest.mark.parametrize("name", WITH_DECAY)
@pytest.mark.parametrize("peak", [None, 0.04])
def test_decoupled_decay_shrinks_by_its_rate_whatever_the_rule(
    name: str, peak: float | None
) -> None:
    """The rule goes on from the parameter that has decayed."""
    options = {"decoupled_weight_decay": True} if name != "AdamW" else {}
    params, plain = doubles(name), doubles(name)
    decayed = made(name, params, engine="eager", lr=0.02, weight_decay=0.1, peak_lr=peak, **options)
    without = made(name, plain, engine="eager", lr=0.02, weight_decay=0.0)
    rate = 0.02 * 0.1 if peak is None else 0.02 / peak * 0.1
    for p, q in zip(params, plain, strict=True):
        q.data.mul_(1 - rate)
        p.grad = q.grad = torch.full_like(p, 0.3)
    decayed.step()
    without.step()
    torch.testing.assert_close(params, plain, **TIGHT)


@pytest.mark.parametrize("name", [n for n in WITH_DECAY if n not in AVERAGING])
def test_cautious_decay_is_of_elements_that_the_step_shrinks(name: str) -> None:
    options = {"decoupled_weight_decay": True} if name != "AdamW" else {}
    params, plain = doubles(name), doubles(name)
    decayed = made(
        name,
        params,
        engine="eager",
        lr=0.02,
        weight_decay=0.1,
        cautious_weight_decay=True,
        **options,
    )
    without = made(name, plain, engine="eager", lr=0.02, weight_decay=0.0)
    before = [p.detach().clone() for p in params]
    for i, (p, q) in enumerate(zip(params, plain, strict=True)):
        noise = torch.Generator().manual_seed(i)
        p.grad = q.grad = torch.randn(p.shape, dtype=p.dtype, generator=noise)
    decayed.step()
    without.step()
    for start, p, q in zip(before, params, plain, strict=True):
        shrinks = (start - q.detach()) * start >= 0
        wanted = q.detach() - 0.02 * 0.1 * start * shrinks
        torch.testing.assert_close(p.detach(), wanted, **TIGHT)


@pytest.mark.parametrize("name", KINDS)
def test_engines_agree(name: str) -> None:
    found = {}
    # The kernel takes no sums beside a matrix operation.
    is_of_matrices = bool(recording_of(name).matrix_operations)
    for engine in engines_of(name)[: 2 if is_of_matrices else None]:
        params = doubles(name)
        optimizer = made(name, params, engine=engine, cautious=True, ema_decay=0.9)
        for _ in gradients(params, STEPS):
            optimizer.step()
        assert {row.engine for row in optimizer.explain().rows} == {engine}
        with optimizer.averaged():
            found[engine] = [p.detach().clone() for p in params]
    for others in found.values():
        torch.testing.assert_close(others, found["eager"], **TIGHT)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_average_is_of_what_the_cautious_step_made(engine: str) -> None:
    params = doubles("AdamW")
    options = {"cautious": True, "cautious_weight_decay": True, "weight_decay": 0.1}
    optimizer = steprule.AdamW(params, engine=engine, ema_decay=0.5, **options)
    mean = [p.detach().clone() for p in params]
    for _ in gradients(params, 3):
        optimizer.step()
        mean = [0.5 * m + 0.5 * p.detach() for m, p in zip(mean, params, strict=True)]
    with optimizer.averaged():
        torch.testing.assert_close([p.detach() for p in params], mean, **TIGHT)


@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_a_group_may_be_switched_and_resumed(engine: str) -> None:
    """The option is looked at in every step; a state dict and a pickle have it."""
    params, others = doubles("Adam"), doubles("Adam")
    optimizer = steprule.Adam(params, engine=engine)
    for step, _ in enumerate(gradients(params, 4)):
        optimizer.param_groups[0]["cautious"] = step >= 2
        optimizer.step()
        if step == 2:
            saved = pickle.loads(pickle.dumps(optimizer.state_dict()))
            middle = [p.detach().clone() for p in params]
            assert pickle.loads(pickle.dumps(optimizer)).param_groups[0]["cautious"] is True
    with torch.no_grad():
        for p, m in zip(others, middle, strict=True):
            p.copy_(m)
    resumed = steprule.Adam(others, engine=engine)
    resumed.load_state_dict(saved)
    for p, q in zip(others, params, strict=True):
        p.grad = q.grad
    resumed.step()
    torch.testing.assert_close(others, params, rtol=0, atol=0)


def test_a_schedule_changes_the_papers_decay_with_the_rate() -> None:
    param = torch.ones(3, dtype=torch.float64, requires_grad=True)
    rates = steprule.schedules.linear(0.1, 0.0, steps=4)
    optimizer = steprule.SGD(
        [param], lr=rates, weight_decay=0.5, decoupled_weight_decay=True, peak_lr=0.1
    )
    wanted = 1.0
    for step in range(4):
        param.grad = torch.zeros(3, dtype=torch.float64)
        optimizer.step()
        wanted *= 1 - rates(step) / 0.1 * 0.5
        torch.testing.assert_close(param.detach(), torch.full((3,), wanted, dtype=torch.float64))


def test_what_is_not_finite_is_not_hidden() -> None:
    param = torch.ones(4, requires_grad=True)
    optimizer = steprule.Adam([param], cautious=True)
    param.grad = torch.tensor([1.0, float("nan"), float("inf"), -1.0])
    optimizer.step()
    assert param.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.complex64, torch.float32])
@pytest.mark.parametrize("engine", FAST_ENGINES)
def test_other_dtypes_go_on(dtype: torch.dtype, engine: str) -> None:
    """Complex parameters are pairs of reals: each part has a mask of its own."""
    torch.manual_seed(0)
    param = torch.randn(6, 5, dtype=dtype, requires_grad=True)
    optimizer = steprule.AdamW([param], engine=engine, cautious=True, cautious_weight_decay=True)
    before = param.detach().clone()
    for _ in range(2):
        param.grad = torch.randn(6, 5, dtype=dtype)
        optimizer.step()
    assert param.isfinite().all()
    assert not torch.equal(param, before)


@pytest.mark.parametrize("option", ["decoupled_weight_decay", "cautious_weight_decay", "peak_lr"])
@pytest.mark.parametrize("name", WITHOUT)
def test_where_decay_is_not_the_shared_term_its_options_are_refused(name: str, option: str) -> None:
    params, value = make_params(name), 1.0 if option == "peak_lr" else True
    if option == "decoupled_weight_decay":
        value = not OPTIMIZERS[name.lower()].extras[option]
    with pytest.raises(ValueError, match=rf"{option}=.* says nothing here: {name} .*leave it out"):
        made(name, params, **{option: value})
    optimizer = made(name, params)
    with pytest.raises(ValueError, match=f"group 1: {option}"):
        optimizer.add_param_group({"params": [torch.ones(2, 2, requires_grad=True)], option: value})
    assert len(optimizer.param_groups) == 1


@pytest.mark.parametrize("name", AVERAGING)
def test_caution_is_refused_where_a_masked_step_would_spoil_an_average(name: str) -> None:
    params = make_params(name)
    with pytest.raises(ValueError, match=f"cautious=True would mask .*{name}.*leave it out"):
        made(name, params, cautious=True)
    with pytest.raises(ValueError, match="cautious_weight_decay=True"):
        made(name, params, cautious_weight_decay=True)
    optimizer = made(name, params)
    with pytest.raises(ValueError, match="group 1: cautious=True"):
        optimizer.add_param_group({"params": [torch.ones(2, requires_grad=True)], "cautious": True})
    assert len(optimizer.param_groups) == 1


#: Of a group in the midst of a run: an optimizer, its options, what is changed, the message.
CHANGES: list[tuple[str, dict[str, Any], dict[str, Any], str]] = [
    ("SGD", {"weight_decay": 0.5}, {"cautious_weight_decay": True}, "set decoupled_weight_decay"),
    ("SGD", {"weight_decay": 0.5}, {"peak_lr": 1.0}, "set decoupled_weight_decay"),
    ("AdamW", {"peak_lr": 0.1}, {"peak_lr": 0.0}, "peak_lr must be a finite number > 0, got 0.0"),
    ("AdamW", {"peak_lr": 0.1}, {"peak_lr": -1.0}, "peak_lr must be a finite number > 0, got -1.0"),
    ("AdamW", {}, {"cautious": "no"}, "cautious must be True or False, got 'no'"),
    ("LAMB", {}, {"cautious_weight_decay": True}, "says nothing here: LAMB scales"),
    ("ScheduleFreeAdamW", {}, {"cautious": True}, "cautious=True would mask"),
    ("ASGD", {}, {"cautious": True}, "cautious=True would mask"),
]


@pytest.mark.parametrize(("name", "options", "change", "message"), CHANGES)
def test_what_is_changed_in_mid_run_is_checked_before_anything_moves(
    name: str, options: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    params = make_params(name)
    optimizer = made(name, params, **options)
    for _ in gradients(params, 2):
        optimizer.step()
    before = [p.detach().clone() for p in params]
    saved = copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.param_groups[0].update(change)
    with pytest.raises((ValueError, TypeError), match=f"group 0: .*{message}"):
        optimizer.step()
    torch.testing.assert_close([p.detach() for p in params], before, rtol=0, atol=0)
    torch.testing.assert_close(optimizer.state_dict()["state"], saved, rtol=0, atol=0)


def test_none_leaves_the_kind_of_decay_to_the_rule() -> None:
    found = []
    for asked in ({}, {"decoupled_weight_decay": None}, {"decoupled_weight_decay": False}):
        param = torch.ones(3, requires_grad=True)
        optimizer = steprule.Lion([param], lr=0.1, weight_decay=0.5, **asked)  # type: ignore[arg-type]
        param.grad = torch.zeros(3)
        optimizer.step()
        found.append(param.tolist())
    assert found[0] == found[1] != found[2]


def test_of_a_sparse_gradient_the_share_is_of_the_rows_that_it_has() -> None:
    table = torch.nn.Embedding(100, 2, sparse=True)
    torch.nn.init.ones_(table.weight)
    optimizer = steprule.SGD(table.parameters(), lr=0.1, cautious=True)
    table(torch.tensor([3])).sum().backward()
    optimizer.step()
    torch.testing.assert_close(table.weight[3].detach(), torch.full((2,), 0.9))


def test_caution_about_decay_asks_for_decoupled_decay() -> None:
    param = torch.ones(3, requires_grad=True)
    for option in ({"cautious_weight_decay": True}, {"peak_lr": 0.1}):
        with pytest.raises(ValueError, match="set decoupled_weight_decay=True as well"):
            steprule.SGD([param], **option)
    for peak in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="peak_lr must be"):
            steprule.AdamW([param], peak_lr=peak)
    with pytest.raises(TypeError, match="peak_lr must be a number"):
        steprule.AdamW([param], peak_lr="0.1")
    with pytest.raises(TypeError, match="cautious must be True or False"):
        steprule.AdamW([param], cautious="yes")
    with pytest.raises(TypeError, match="AdamW has decoupled_weight_decay=True for good"):
        steprule.AdamW([param], decoupled_weight_decay=False)


def test_decay_over_rows_that_have_no_gradient_is_refused() -> None:
    table = torch.ones(6, 2, requires_grad=True)
    optimizer = steprule.SGD(
        [table], weight_decay=0.1, decoupled_weight_decay=True, cautious_weight_decay=True
    )
    table.grad = torch.sparse_coo_tensor([[1]], [[1.0, 1.0]], (6, 2), check_invariants=True)
    with pytest.raises(RuntimeError, match="weight_decay option is not compatible with sparse"):
        optimizer.step()
    assert bool((table == 1).all())


def test_a_group_of_prodigy_may_be_cautious_beside_one_that_is_not() -> None:
    """Its sums are over both."""
    params = doubles("Prodigy")
    groups = [{"params": params[:1], "cautious": True}, {"params": params[1:]}]
    optimizer = steprule.Prodigy(groups)
    for _ in gradients(params, 3):
        optimizer.step()
    assert len({float(optimizer.state[p]["d"]) for p in params}) == 1
