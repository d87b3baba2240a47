"""A problem for `steprule compare`: put your own model, loss and data in the places of these.

Save it as my_problem.py, then:

    steprule compare my_problem:make_problem --optimizers sgd,adam,adamw --steps 300 --seeds 3
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from steprule.problems import Problem


def make_problem() -> Problem:
    """Return a model, its loss and its data.

    Called once for each seed, torch's, NumPy's and Python's generators seeded; it may take the
    seed as an argument, too.
    """
    rows = torch.Generator().manual_seed(0)  # the same data for every seed
    x = torch.randn(1200, 8, generator=rows)
    y = torch.sin(x).sum(dim=1, keepdim=True)
    x_test, y_test = x[1000:], y[1000:]

    def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        inputs, targets = batch
        return mse_loss(model(inputs), targets)

    def evaluate(model: nn.Module) -> dict[str, float]:
        """Return figures to show; runs are ranked by "loss", smaller is better."""
        return {"loss": float(mse_loss(model(x_test), y_test))}

    return Problem(
        model=nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1)),
        loss=loss,
        data=(x[:1000], y[:1000]),  # rows, shuffled into batches; or a DataLoader, or a list
        evaluate=evaluate,  # may be left out: then the loss of the last batches ranks
        name="A sum of sines",
    )
