"""Optimizers that are others at some options, and options that no reference run has."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from reference_runs import trained

import steprule

# Both compute the same in float64, in another order, for 50 steps.
SAME = {"rtol": 1e-9, "atol": 1e-11}
ADAM = {"lr": 0.02, "betas": (0.9, 0.99)}
RMS = {"lr": 0.02, "betas": (0.0, 0.99)}


@pytest.mark.parametrize(
    ("name", "options", "other", "theirs"),
    [
        ("QHAdam", ADAM, "Adam", ADAM),
        ("QHM", {"lr": 0.2, "momentum": 0.9, "nu": 1.0}, "SGD", {"lr": 0.02, "momentum": 0.9}),
        (
            "QHM",
            {"lr": 0.2, "momentum": 0.9, "nu": 0.9},
            "SGD",
            {"lr": 0.02, "momentum": 0.9, "nesterov": True},
        ),
        ("AdEMAMix", {**ADAM, "betas": (0.9, 0.99, 0.5), "alpha": 0.0}, "Adam", ADAM),
        (
            "MARS",
            {**ADAM, "gamma": 0.0, "weight_decay": 0.1},
            "AdamW",
            {**ADAM, "weight_decay": 0.1, "clip_grad_norm": 1.0, "clip_grad_norm_over": "param"},
        ),
        # Its eps is not divided by the correction: there must be none to see it.
        ("GrokAdamW", {**ADAM, "lamb": 0.0, "eps": 0.0}, "AdamW", {**ADAM, "eps": 0.0}),
        ("LaProp", {**RMS, "eps": 1e-8}, "Adam", {**RMS, "eps": 1e-8}),
        ("Lion", {"lr": 0.02, "betas": (0.9, 0.9)}, "Signum", {"lr": 0.02, "momentum": 0.9}),
        ("SophiaG", {"lr": 0.02, "rho": 0.0}, "Signum", {"lr": 0.02, "momentum": 0.965}),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_one_is_the_other(name: str, options: Any, other: str, theirs: Any) -> None:
    # AdamW's guard adds 1e-6 to the norm, MARS nothing.
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if name == "MARS" else SAME
    decay = {} if "weight_decay" in options else {"weight_decay": 0.0}
    mine = trained(getattr(steprule, name), {**options, **decay})
    its = trained(getattr(steprule, other), {**theirs, **decay})
    torch.testing.assert_close(mine, its, **tolerance)


def stepped(name: str, grads: list[float], **options: Any) -> tuple[list[float], Any]:
    """The values of a parameter that starts at 0, after each step of given gradients."""
    param = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimizer = getattr(steprule, name)([param], **options)
    found = []
    for grad in grads:
        param.grad = torch.tensor(grad, dtype=torch.float64)
        optimizer.step()
        found.append(param.item())
    return found, optimizer.state.get(param, {})


def test_adopts_first_step_starts_the_second_moment_and_no_more() -> None:
    moved, state = stepped("ADOPT", [2.0, 6.0], lr=1.0, betas=(0.5, 0.75))
    assert moved == [0.0, -0.5]  # 6 / 2, within the bound 1 of the second step; half of it
    assert state["exp_avg_sq"] == 0.75 * 4 + 0.25 * 36
    assert stepped("ADOPT", [2.0, 6.0], lr=1.0, betas=(0.5, 0.75), clip_exp=None)[0][1] == -1.5
    assert stepped("ADOPT", [0.0, 0.0], eps=0.0)[0][0] == 0.0


def test_the_slow_average_gets_slower_until_its_warm_up_is_over() -> None:
    betas = (0.5, 0.99, 0.96875)  # which remember for 1 and 21.8 half-lives
    for step in (1, 3, 8, 11):
        _, state = stepped("AdEMAMix", [0.0] * (step - 1) + [1.0], betas=betas, beta3_warmup=8)
        done = min(1.0, step / 8)
        lifetime = (1 - done) / math.log(0.5) + done / math.log(0.96875)
        assert state["exp_avg_slow"].item() == pytest.approx(1 - math.exp(1 / lifetime))
    for beta1, beta3 in ((0.0, 0.9), (0.0, 0.0), (0.9, 0.9)):
        moved, _ = stepped("AdEMAMix", [1.0] * 3, betas=(beta1, 0.9, beta3), beta3_warmup=2)
        assert all(map(math.isfinite, moved))


def test_adabelief_without_rectification() -> None:
    grads, lr, eps = [1.0, -2.0, 0.5], 0.1, 1e-3
    options: dict[str, Any] = {"lr": lr, "betas": (0.5, 0.75), "eps": eps, "rectify": False}
    m = s = most = param = largest_param = 0.0
    for t, grad in enumerate(grads, 1):
        m = 0.5 * m + 0.5 * grad
        s = 0.75 * s + 0.25 * (grad - m) ** 2 + eps
        most = max(s, most)
        size, root = lr / (1 - 0.5**t) * m, math.sqrt(1 - 0.75**t)
        param -= size / (math.sqrt(s) / root + eps)
        largest_param -= size / (math.sqrt(most) / root + eps)
    assert stepped("AdaBelief", grads, **options)[0][-1] == pytest.approx(param, rel=1e-12)
    with_largest = stepped("AdaBelief", grads, amsgrad=True, **options)
    assert with_largest[0][-1] == pytest.approx(largest_param, rel=1e-12)
    assert with_largest[1]["max_exp_avg_var"].item() == pytest.approx(most, rel=1e-12)


def test_adans_decay_is_proximal_unless_it_is_not() -> None:
    for no_prox, factor in ((False, 1 / 1.25), (True, 0.75)):
        param = torch.ones(1, requires_grad=True)
        optimizer = steprule.Adan([param], lr=0.5, weight_decay=0.5, no_prox=no_prox)
        param.grad = torch.zeros(1)
        optimizer.step()
        assert param.item() == pytest.approx(factor)


def test_signum_without_momentum_keeps_no_state() -> None:
    moved, state = stepped("Signum", [-3.0, 0.0, 5.0], lr=0.25, momentum=0.0)
    assert moved == [0.25, 0.25, 0.0]
    assert not state


def test_the_grokking_signal_shortens_the_slow_average() -> None:
    _, state = stepped(
        "GrokAdamW", [1.0], alpha_init=0.5, grokking_signal=2.0, grokking_signal_decay_rate=0.1
    )
    assert state["grok_ema"].item() == pytest.approx(1 - 0.5 * math.exp(-0.2))
