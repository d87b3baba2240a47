"""BoTorch: model fits and the search for candidates, by our optimizers and by torch's.

In float64, on one small model whose likelihood BoTorch computes by Cholesky factorization.
"""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from client_runs import run_example
from torch import Tensor

import steprule
from steprule import lr_scheduler

with warnings.catch_warnings():  # linear_operator is compiled when it is imported
    warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
    from botorch.acquisition import LogExpectedImprovement, qLogExpectedImprovement
    from botorch.fit import fit_gpytorch_mll, fit_gpytorch_mll_torch
    from botorch.generation.gen import gen_candidates_torch
    from botorch.models import SingleTaskGP
    from botorch.models.transforms import Normalize, Standardize
    from botorch.optim import optimize_acqf
    from botorch.optim.closures import get_loss_closure_with_grads
    from botorch.sampling import SobolQMCNormalSampler
    from gpytorch.mlls import ExactMarginalLogLikelihood

PACKAGES = (torch.optim, steprule)
# float64: dozens of steps, each rounding gradients that went through a Cholesky factor.
CLOSE = {"rtol": 1e-8, "atol": 1e-9}
BOUNDS = torch.tensor([[0.0, 0.0], [1.0, 1.0]], dtype=torch.float64)


def likelihood() -> ExactMarginalLogLikelihood:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    y = torch.sin(5 * x[:, :1]) + (x[:, 1:] - 0.4) ** 2 + 0.2 * noise
    model = SingleTaskGP(x, y, input_transform=Normalize(d=2), outcome_transform=Standardize(m=1))
    return ExactMarginalLogLikelihood(model.likelihood, model)


def numbers(mll: ExactMarginalLogLikelihood) -> list[Tensor]:
    return [param.detach().clone() for param in mll.parameters()]


@pytest.mark.parametrize("name", ["Adam", "AdamW", "RMSprop", "SGD"])
def test_a_fit_takes_torchs_steps(name: str) -> None:
    found = []
    for package in PACKAGES:
        mll = likelihood()
        before = numbers(mll)
        optimizer = partial(getattr(package, name), lr=0.02)
        result = fit_gpytorch_mll_torch(
            mll, optimizer=optimizer, step_limit=25, stopping_criterion=None
        )
        assert result.step == 25
        assert not all(map(torch.equal, before, numbers(mll)))
        found.append((result.fval, numbers(mll)))
    torch.testing.assert_close(*found, **CLOSE)


def test_the_usual_call_with_its_stopping_criterion() -> None:
    """`fit_gpytorch_mll(optimizer=...)`: as many steps, to the same loss."""
    steps: list[list[int]] = []
    found = []
    for package in PACKAGES:
        mll, seen = likelihood(), []

        def note(_: Any, result: Any, seen: list[int] = seen) -> None:
            seen.append(result.step)

        fit_gpytorch_mll(
            mll,
            optimizer=fit_gpytorch_mll_torch,
            optimizer_kwargs={
                "optimizer": partial(package.Adam, lr=0.05),
                "step_limit": 60,
                "callback": note,
            },
        )
        steps.append(seen)
        found.append(numbers(mll))
    assert steps[0] == steps[1]
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize("whose", ["ours", "mixed"])
def test_with_a_scheduler_and_bounds(whose: str) -> None:
    found = []
    mine = lr_scheduler if whose == "ours" else torch.optim.lr_scheduler
    for package, schedulers in ((torch.optim, torch.optim.lr_scheduler), (steprule, mine)):
        mll = likelihood()
        fit_gpytorch_mll_torch(
            mll,
            bounds={"model.covar_module.raw_lengthscale": (0.2, 0.6)},
            optimizer=partial(package.Adam, lr=0.1),
            scheduler=partial(schedulers.ExponentialLR, gamma=0.95),
            step_limit=20,
            stopping_criterion=None,
        )
        found.append(numbers(mll))
    torch.testing.assert_close(*found, **CLOSE)


def test_a_schedule_in_place_of_a_scheduler() -> None:
    mll = likelihood()
    rate = steprule.schedules.cosine(0.01, 0.0, steps=20)
    before = get_loss_closure_with_grads(mll, dict(mll.named_parameters()))()[0].item()
    result = fit_gpytorch_mll_torch(
        mll, optimizer=partial(steprule.Adam, lr=rate), step_limit=20, stopping_criterion=None
    )
    assert result.fval < before


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_a_fit_by_lbfgs(line_search: str | None) -> None:
    """BoTorch calls `step()` without closure; a fit by LBFGS drives its closure itself."""
    found = []
    for package in PACKAGES:
        mll = likelihood()
        parameters = {n: p for n, p in mll.named_parameters() if p.requires_grad}
        loss_and_gradients = get_loss_closure_with_grads(mll, parameters)
        optimizer = package.LBFGS(
            parameters.values(),
            lr=0.1 if line_search else 0.01,
            max_iter=15,
            line_search_fn=line_search,
        )

        def closure(losses: Any = loss_and_gradients) -> Tensor:
            return losses()[0]  # type: ignore[no-any-return]  # it clears gradients by itself

        first = optimizer.step(closure)
        assert closure() < first
        found.append(numbers(mll))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)  # curvature amplifies roundings


def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit() -> None:
    mll = likelihood()
    optimizer = steprule.Adam(mll.parameters(), lr=0.05)
    fit_gpytorch_mll_torch(mll, optimizer=optimizer, step_limit=10)
    saved = copy.deepcopy((mll.state_dict(), optimizer.state_dict()))
    fit_gpytorch_mll_torch(mll, optimizer=optimizer, step_limit=10)
    again = likelihood()
    again.load_state_dict(saved[0])
    resumed = steprule.Adam(again.parameters(), lr=0.05)
    resumed.load_state_dict(saved[1])
    fit_gpytorch_mll_torch(again, optimizer=resumed, step_limit=10)
    assert all(map(torch.equal, numbers(mll), numbers(again)))


def fitted() -> SingleTaskGP:
    mll = likelihood()
    fit_gpytorch_mll_torch(mll, optimizer=partial(torch.optim.Adam, lr=0.1), step_limit=30)
    return mll.model.eval()


START = torch.tensor([[[0.2, 0.3]], [[0.5, 0.5]], [[0.9, 0.1]]], dtype=torch.float64)


@pytest.mark.parametrize("name", ["Adam", "SGD", "RMSprop", "Adagrad"])
def test_candidates(name: str) -> None:
    """A class, not an instance, made for each search; the closure sets the gradient."""
    model = fitted()
    acquisition = LogExpectedImprovement(model, best_f=0.5)
    found = [
        gen_candidates_torch(
            START,
            acquisition,
            lower_bounds=0.0,
            upper_bounds=1.0,
            optimizer=getattr(package, name),
            options={
                "optimizer_options": {"lr": 0.02},
                "stopping_criterion_options": {"maxiter": 30},
            },
        )
        for package in PACKAGES
    ]
    assert not torch.equal(found[0][0], START)
    torch.testing.assert_close(*found, **CLOSE)


def test_candidates_with_a_fixed_feature() -> None:
    """The parameter is then an indexed copy, with strides of its own."""
    acquisition = LogExpectedImprovement(fitted(), best_f=0.5)
    found = [
        gen_candidates_torch(
            START,
            acquisition,
            lower_bounds=0.0,
            upper_bounds=1.0,
            fixed_features={1: 0.25},
            optimizer=package.Adam,
            options={"stopping_criterion_options": {"maxiter": 20}},
        )
        for package in PACKAGES
    ]
    assert (found[1][0][..., 1] == 0.25).all()
    torch.testing.assert_close(*found, **CLOSE)


def test_optimize_acqf_by_our_optimizer() -> None:
    acquisition = qLogExpectedImprovement(
        fitted(), best_f=0.5, sampler=SobolQMCNormalSampler(torch.Size([32]), seed=0)
    )
    found = []
    for package in PACKAGES:
        torch.manual_seed(0)  # which of the samples are starts is drawn by torch's generator
        found.append(
            optimize_acqf(
                acquisition,
                bounds=BOUNDS,
                q=2,
                num_restarts=3,
                raw_samples=16,
                options={"seed": 0, "stopping_criterion_options": {"maxiter": 25}},
                gen_candidates=partial(gen_candidates_torch, optimizer=package.Adam),
            )
        )
    assert ((found[1][0] >= 0) & (found[1][0] <= 1)).all()
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.filterwarnings(
    "ignore::botorch.exceptions.warnings.BotorchWarning"
)  # inputs as they are
def test_the_example_of_the_docs() -> None:
    run_example("GPyTorch and BoTorch")
