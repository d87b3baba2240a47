"""Loss against evaluations where LBFGS is used: three models (for lbfgs_solve.py).

Logistic regression on scikit-learn's digits, float32, with a penalty that makes its minimum
finite; and two small physics-informed networks in float64: Poisson's equation in one dimension,
and Burgers' (M. Raissi, P. Perdikaris, G. Karniadakis, "Physics-informed neural networks", Journal
of Computational Physics 378, 2019, section 3.1.1: same equation and viscosity, fewer points and
units). A method's loss
after k evaluations is the least it has seen; the geometric mean over seeds is shown.
"""

from __future__ import annotations

import itertools
import math
import statistics
import warnings
from collections.abc import Callable
from typing import Any

import torch
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import Linear, Sequential, Tanh

from steprule.quasi_newton import LBFGS

BASE = "torch strong_wolfe"
METHODS: dict[str, tuple[Any, str | None]] = {
    "torch, fixed steps": (torch.optim.LBFGS, None),
    BASE: (torch.optim.LBFGS, "strong_wolfe"),
    "more_thuente": (LBFGS, "more_thuente"),
    "strong_wolfe": (LBFGS, "strong_wolfe"),
    "backtracking": (LBFGS, "backtracking"),
}
PENALTY = 1e-4
VISCOSITY = 0.01 / math.pi

Task = tuple[torch.nn.Module, Callable[[], Tensor]]


def digits(seed: int) -> Task:
    """Softmax regression on all 1,797 images."""
    data = load_digits()
    images = torch.tensor(data.data, dtype=torch.float32) / 16
    labels = torch.tensor(data.target)
    torch.manual_seed(seed)
    model = Linear(64, 10)

    def loss() -> Tensor:
        fit = torch.nn.functional.cross_entropy(model(images), labels)
        return fit + PENALTY * model.weight.square().sum()

    return model, loss


def network(inputs: int, seed: int) -> torch.nn.Module:
    """Three layers of 20 tanh units, float64."""
    torch.manual_seed(seed)
    sizes = itertools.pairwise([inputs, 20, 20, 20, 1])
    layers = [layer for fan_in, fan_out in sizes for layer in (Linear(fan_in, fan_out), Tanh())]
    return Sequential(*layers[:-1]).double()


def gradient(u: Tensor, x: Tensor) -> Tensor:
    """Derivatives of each row of u by that row of x."""
    return torch.autograd.grad(u.sum(), x, create_graph=True)[0]


def poisson(seed: int) -> Task:
    """-u'' = f on [-1, 1], 0 at the ends, with f such that u = sin(pi x) + 0.1 sin(4 pi x)."""
    x = torch.linspace(-1, 1, 100, dtype=torch.float64)[:, None].requires_grad_()
    ends = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    waves = math.pi * x.detach()
    f = math.pi**2 * (torch.sin(waves) + 1.6 * torch.sin(4 * waves))
    model = network(1, seed)

    def loss() -> Tensor:
        second = gradient(gradient(model(x), x), x)
        return (second + f).square().mean() + 100 * model(ends).square().mean()

    return model, loss


def burgers(seed: int) -> Task:
    """u_t + u u_x = (0.01/pi) u_xx on [-1, 1] x [0, 1], from u = -sin(pi x), 0 at the ends."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.rand(400, 2, generator=generator, dtype=torch.float64)
    inside = torch.stack([2 * points[:, 0] - 1, points[:, 1]], 1).requires_grad_()
    x = torch.linspace(-1, 1, 50, dtype=torch.float64)
    at_start = torch.stack([x, torch.zeros(50)], 1)
    times = torch.linspace(0, 1, 25, dtype=torch.float64)
    at_ends = [torch.stack([end + 0 * times, times], 1) for end in (-1, 1)]
    boundary = torch.cat([at_start, *at_ends])
    values = torch.cat([-torch.sin(math.pi * x), torch.zeros(50)])
    model = network(2, seed)

    def loss() -> Tensor:
        u = model(inside)
        first = gradient(u, inside)
        second = gradient(first[:, 0], inside)
        residual = first[:, 1] + u[:, 0] * first[:, 0] - VISCOSITY * second[:, 0]
        return residual.square().mean() + (model(boundary)[:, 0] - values).square().mean()

    return model, loss


TASKS: dict[str, tuple[Callable[[int], Task], tuple[int, ...]]] = {
    "logistic regression on digits": (digits, (10, 20, 50, 100)),
    "network for Burgers' equation": (burgers, (20, 50, 100, 200)),
    "network for Poisson's equation": (poisson, (20, 50, 100, 200)),
}


def least_losses(task: Task, method: str, budget: int) -> list[float]:
    """The least loss after each evaluation, in one call of ``step``."""
    model, loss_of = task
    cls, line_search_fn = METHODS[method]
    optimizer = cls(
        model.parameters(),
        max_iter=budget,
        max_eval=budget,
        tolerance_grad=0.0,
        tolerance_change=0.0,
        line_search_fn=line_search_fn,
    )
    losses: list[float] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # fixed steps may end in nan
        optimizer.step(closure)
    losses = [loss if math.isfinite(loss) else math.inf for loss in losses][:budget]
    losses += [math.inf] * (budget - len(losses))  # it stopped early: the least stays
    return list(itertools.accumulate(losses, min))


Losses = dict[str, dict[int, list[float]]]


def run_task(name: str, seeds: int) -> Losses:
    """For each method and number of evaluations, each seed's loss."""
    task, marks = TASKS[name]
    found: Losses = {}
    for method in METHODS:
        runs = [least_losses(task(seed), method, marks[-1]) for seed in range(seeds)]
        found[method] = {mark: [run[mark - 1] for run in runs] for mark in marks}
    return found


def ratio(losses: Losses, method: str, mark: int) -> tuple[float, float]:
    """The mean of log(loss / torch's loss of the same seed), and its standard error."""
    pairs = zip(losses[method][mark], losses[BASE][mark], strict=True)
    logs = [math.log(ours / theirs) for ours, theirs in pairs]
    spread = statistics.stdev(logs) if len(logs) > 1 else math.inf
    return statistics.fmean(logs), spread / math.sqrt(len(logs))


def table(task: str, losses: Losses) -> Table:
    """Mean losses, and percent above torch's (red where beyond two standard errors)."""
    marks = list(losses[BASE])
    shown = Table("evaluations", *map(str, marks), title=f"Loss, and percent above torch's: {task}")
    for method, at in losses.items():
        cells = []
        for mark in marks:
            mean, error = ratio(losses, method, mark)
            colour = "red" if mean > 2 * error else "default"
            beside = f" {100 * math.expm1(mean):+.1f} ± {100 * error:.1f}" if method != BASE else ""
            cells.append(f"[{colour}]{statistics.geometric_mean(at[mark]):.4g}{beside}[/]")
        shown.add_row(method, *cells)
    return shown
