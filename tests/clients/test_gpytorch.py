"""GPyTorch: exact Gaussian processes by Adam and LBFGS, variational ones with natural gradients.

Each is fitted twice, by torch's optimizer and by ours, from the same start on the same data in
float64. GPyTorch solves these sizes by Cholesky factorization, so that a fit has no randomness.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import steprule

with warnings.catch_warnings():  # linear_operator is compiled when it is imported
    warnings.filterwarnings("ignore", "`torch.jit.script`", DeprecationWarning)
    import gpytorch

PACKAGES = (torch.optim, steprule)
# float64: a few dozen steps, each rounding gradients that went through a Cholesky factor of
# condition up to 1e4.
CLOSE = {"rtol": 1e-9, "atol": 1e-10}


def data(n: int = 40) -> tuple[Tensor, Tensor]:
    x = torch.linspace(0, 1, n, dtype=torch.float64)
    noise = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return x, torch.sin(6 * x) + 0.1 * noise


class Exact(gpytorch.models.ExactGP):  # type: ignore[misc]
    def __init__(self, x: Tensor, y: Tensor) -> None:
        super().__init__(x, y, gpytorch.likelihoods.GaussianLikelihood())
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def exact() -> tuple[Exact, Callable[[], Tensor]]:
    """A process and its negative marginal likelihood."""
    x, y = data()
    model = Exact(x, y).double().train()
    likelihood = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    return model, lambda: -likelihood(model(x), y)


def fit(loss_of: Callable[[], Tensor], optimizers: list[Any], steps: int) -> list[float]:
    """Losses of so many steps."""
    losses = []
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        losses.append(loss.item())
    return losses


def state_of(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


@pytest.mark.parametrize("name", ["Adam", "RMSprop", "SGD"])
def test_an_exact_process_is_fitted_as_by_torchs_class(name: str) -> None:
    found = []
    for package in PACKAGES:
        model, loss_of = exact()
        losses = fit(loss_of, [getattr(package, name)(model.parameters(), lr=0.05)], 25)
        assert losses[-1] < losses[0]
        found.append((losses, state_of(model)))
    torch.testing.assert_close(*found, **CLOSE)


@pytest.mark.parametrize("line_search", [None, "strong_wolfe"])
def test_an_exact_process_by_lbfgs(line_search: str | None) -> None:
    found = []
    for package in PACKAGES:
        model, loss_of = exact()
        optimizer = package.LBFGS(
            model.parameters(), lr=0.1, max_iter=20, line_search_fn=line_search
        )

        def closure(optimizer: Any = optimizer, loss_of: Any = loss_of) -> Tensor:
            optimizer.zero_grad()
            loss: Tensor = loss_of()
            loss.backward()
            return loss

        first = optimizer.step(closure)
        evaluations = optimizer.state[optimizer.param_groups[0]["params"][0]]["func_evals"]
        assert closure() < first
        found.append((evaluations, state_of(model)))
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-8)  # curvature amplifies roundings


def test_predictions_of_a_fitted_process_are_torchs() -> None:
    x = torch.linspace(-0.2, 1.2, 15, dtype=torch.float64)
    found = []
    for package in PACKAGES:
        model, loss_of = exact()
        fit(loss_of, [package.Adam(model.parameters(), lr=0.1)], 20)
        model.eval()
        with torch.no_grad():
            predicted = model.likelihood(model(x))
        found.append((predicted.mean, predicted.variance))
    torch.testing.assert_close(*found, **CLOSE)


class Variational(gpytorch.models.ApproximateGP):  # type: ignore[misc]
    def __init__(self, inducing: Tensor) -> None:
        distribution = gpytorch.variational.NaturalVariationalDistribution(inducing.size(0))
        super().__init__(
            gpytorch.variational.VariationalStrategy(
                self, inducing, distribution, learn_inducing_locations=True
            )
        )
        self.mean_module = gpytorch.means.ConstantMean()
        self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel())

    def forward(self, x: Tensor) -> Any:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))


def variational() -> tuple[nn.ModuleList, Callable[[], Tensor]]:
    """A process with its likelihood, and its negative evidence bound."""
    torch.manual_seed(0)  # the strategy adds noise to its first inducing values
    x, y = data()
    model = Variational(x[::5].clone().unsqueeze(-1)).double().train()
    likelihood = gpytorch.likelihoods.GaussianLikelihood().double().train()
    bound = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=y.size(0))
    return nn.ModuleList([model, likelihood]), lambda: -bound(model(x.unsqueeze(-1)), y)


def hyperparameters(both: nn.ModuleList) -> list[nn.Parameter]:
    return [*both[0].hyperparameters(), *both[1].parameters()]


def natural(both: nn.ModuleList) -> Any:
    return gpytorch.optim.NGD(both[0].variational_parameters(), num_data=40, lr=0.1)


def test_natural_gradients_beside_ours() -> None:
    """NGD, a subclass of torch's optimizer, steps the variational parameters; ours the rest."""
    found = []
    for package in PACKAGES:
        both, loss_of = variational()
        adam = package.Adam(hyperparameters(both), lr=0.02)
        losses = fit(loss_of, [natural(both), adam], 25)
        assert losses[-1] < losses[0]
        found.append((losses, state_of(both)))
    torch.testing.assert_close(*found, **CLOSE)


def test_a_resumed_fit_is_the_uninterrupted_one_bit_for_bit() -> None:
    both, loss_of = variational()
    adam = steprule.Adam(hyperparameters(both), lr=0.02)
    optimizers = [natural(both), adam]
    fit(loss_of, optimizers, 5)
    saved = copy.deepcopy((both.state_dict(), [o.state_dict() for o in optimizers]))
    expected = fit(loss_of, optimizers, 5)

    again, loss_again = variational()
    loss_again()  # the strategy sets its first inducing values at the first call
    again.load_state_dict(saved[0])
    resumed = [natural(again), steprule.Adam(hyperparameters(again), lr=0.02)]
    for optimizer, state in zip(resumed, saved[1], strict=True):
        optimizer.load_state_dict(state)
    assert fit(loss_again, resumed, 5) == expected
    assert all(map(torch.equal, again.parameters(), both.parameters()))


def test_priors_constraints_and_frozen_hyperparameters() -> None:
    """A group a hyperparameter, as tutorials have it, one of them frozen."""
    found = []
    for package in PACKAGES:
        model, loss_of = exact()
        model.covar_module.base_kernel.register_prior(
            "prior", gpytorch.priors.GammaPrior(3.0, 6.0), "lengthscale"
        )
        model.likelihood.noise = 0.01
        model.likelihood.raw_noise.requires_grad_(False)
        groups = [
            {"params": model.mean_module.parameters()},
            {"params": model.covar_module.parameters(), "lr": 0.02},
            {"params": model.likelihood.parameters()},
        ]
        fit(loss_of, [package.AdamW(groups, lr=0.1, weight_decay=0.01)], 15)
        assert model.likelihood.noise.item() == pytest.approx(0.01)
        found.append(state_of(model))
    torch.testing.assert_close(*found, **CLOSE)
