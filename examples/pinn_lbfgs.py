"""Solve the heat equation with a network that knows no data, only the equation: Adam, then LBFGS.

    python examples/pinn_lbfgs.py
    python examples/pinn_lbfgs.py --line-search more_thuente

u_t = u_xx / pi^2 on 0 < x < 1, 0 < t < 1, u = 0 at both ends, u = sin(pi x) at t = 0. The solution
is exp(-t) sin(pi x), so that the error is known. Adam finds the region, whatever the start; LBFGS,
which uses curvature, then gains the digits that Adam would need very long for.
"""

import argparse
import math
from pathlib import Path

import torch
from torch import Tensor, nn

import steprule as optim
from steprule.schedules import exponential


def make_model(width: int = 24) -> nn.Module:
    """Make u(x, t). tanh, since the equation takes second derivatives, and ReLU has none."""
    return nn.Sequential(
        nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1)
    )


def exact(points: Tensor) -> Tensor:
    """Return the solution, as a column."""
    x, t = points.split(1, dim=1)
    return torch.exp(-t) * torch.sin(math.pi * x)


def derivative(of: Tensor, by: Tensor) -> Tensor:
    """Return the derivatives by each point's coordinates.

    Each value depends on its own point alone, so the gradient of the sum has them all. The graph is
    kept, for the loss of the derivatives is derived by the weights in turn.
    """
    return torch.autograd.grad(of.sum(), by, create_graph=True)[0]


class HeatEquation:
    """Points at which the equation and its conditions are asked for, and how far off they are."""

    def __init__(self, count: int, device: str) -> None:
        inside = torch.rand(count, 2, dtype=torch.float64)
        walls = torch.rand(max(1, count // 4), 2, dtype=torch.float64)
        walls[:, 0] = walls[:, 0].round()
        start = torch.rand(max(1, count // 4), 2, dtype=torch.float64)
        start[:, 1] = 0
        self.inside = inside.to(device).requires_grad_()
        self.border = torch.cat([walls, start]).to(device)
        self.border_values = exact(self.border)  # 0 at the walls, sin(pi x) at the start

    def loss(self, model: nn.Module) -> Tensor:
        """Return the mean square of what is left of the equation, and of the conditions."""
        first = derivative(model(self.inside), self.inside)
        u_xx = derivative(first[:, 0], self.inside)[:, 0]
        equation = first[:, 1] - u_xx / math.pi**2
        conditions = model(self.border) - self.border_values
        return equation.square().mean() + conditions.square().mean()


@torch.no_grad()
def error(model: nn.Module, device: str) -> float:
    """Return |u - exact| / |exact| on a grid, in the 2-norm."""
    axis = torch.linspace(0, 1, 50, dtype=torch.float64, device=device)
    grid = torch.cartesian_prod(axis, axis)
    return float((model(grid) - exact(grid)).norm() / exact(grid).norm())


def positive(text: str) -> int:
    """Read a whole number above 0; argparse names the option that has another."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return int(text)


def new_file(text: str) -> Path:
    """Read the name of a file to write; that its folder is missing is said before the training."""
    if not Path(text).absolute().parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).parent}")
    return Path(text)


def main() -> None:
    """Train with the one, then with the other, and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=positive, default=500, help="steps of Adam")
    parser.add_argument("--iterations", type=positive, default=500, help="of LBFGS")
    parser.add_argument("--points", type=positive, default=400)
    parser.add_argument("--lr", type=float, default=5e-3, help="of Adam; LBFGS finds its own")
    parser.add_argument(
        "--line-search", default="strong_wolfe", choices=["strong_wolfe", "more_thuente"]
    )
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=new_file, help="save the solution's weights to this file")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    # float64: differences of gradients are what LBFGS learns curvature from, and near a minimum
    # those are smaller than what float32 resolves.
    model = make_model().to(args.device, torch.float64)
    # The same points at every step: a line search compares losses, and between losses of different
    # points it would see differences that the step has not made.
    problem = HeatEquation(args.points, args.device)

    adam = optim.Adam(model.parameters(), lr=exponential(args.lr, 0.998))
    for _ in range(args.epochs):
        adam.zero_grad()
        problem.loss(model).backward()
        adam.step()
    loss, after_adam = problem.loss(model).item(), error(model, args.device)
    print(f"Adam, {args.epochs} steps: loss {loss:.2e}, relative error {after_adam:.2e}")

    # One step() is a whole run of at most max_iter iterations. tolerance_change=0: go on as long as
    # there is any progress; the default would stop at steps shorter than 1e-9.
    lbfgs = optim.LBFGS(
        model.parameters(),
        max_iter=args.iterations,
        history_size=50,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn=args.line_search,
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        loss = problem.loss(model)
        loss.backward()
        return loss

    lbfgs.step(closure)
    loss, after_lbfgs = problem.loss(model).item(), error(model, args.device)
    print(lbfgs.result())
    print(f"LBFGS: loss {loss:.2e}, relative error {after_lbfgs:.2e}")
    if args.out:
        optim.save_training(args.out, model=model, optimizer=lbfgs)
        print(f"saved {args.out}")
    print(f"relative error: {after_adam:.3e} after Adam, {after_lbfgs:.3e} after LBFGS")


if __name__ == "__main__":
    main()
