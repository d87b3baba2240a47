"""The runs by which SAM and Lookahead are compared with other implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BASE: dict[str, Any] = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01}
SAMS: dict[str, dict[str, Any]] = {
    "SAM": {"rho": 0.3, "adaptive": False},
    "ASAM": {"rho": 1.5, "adaptive": True},
}
LOOKAHEAD: dict[str, Any] = {"k": 4, "alpha": 0.3}


def start() -> list[Tensor]:
    """Parameters in float64."""
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((5, 7), (3,), (9, 4))
    ]


def loss_of(params: list[Tensor], step: int) -> Tensor:
    """A loss whose gradients depend on all parameters, and on the step."""
    generator = torch.Generator().manual_seed(step)
    found = torch.zeros((), dtype=torch.float64)
    for param in params:
        centre = torch.randn(param.shape, generator=generator, dtype=torch.float64)
        found = (
            found + torch.log1p((param - 0.3 * centre).square()).sum() + 0.1 * param.tanh().sum()
        )
    return found


def closure_of(optimizer: Any, params: list[Tensor], step: int) -> Callable[[], Tensor]:
    """What clears the gradients and computes the loss and new ones."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(params, step)
        loss.backward()
        return loss

    return closure


def trained(
    make: Callable[..., Any], steps: int = 50, *, gradients_first: bool = False
) -> list[Tensor]:
    """Parameters after some steps with closures.

    Args:
        make: makes an optimizer of parameters.
        steps: how many.
        gradients_first: whether the optimizer expects gradients before it calls the closure.
    """
    params = start()
    optimizer = make(params)
    for step in range(steps):
        closure = closure_of(optimizer, params, step)
        if gradients_first:
            closure()
        optimizer.step(closure)
    return [param.detach() for param in params]
