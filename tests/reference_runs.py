"""The runs by which optimizers that torch has not are compared with other implementations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

RUNS: dict[str, dict[str, Any]] = {
    "LAMB": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05},
    "LARS": {
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "trust_coefficient": 0.02,
        "eps": 1e-8,
        "nesterov": True,
    },
    "Prodigy": {"lr": 0.7, "betas": (0.9, 0.99), "weight_decay": 0.05, "d0": 1e-3},
    "StableAdamW": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05},
}


def trained(make: Callable[..., Any], options: dict[str, Any], steps: int = 50) -> list[Any]:
    """Parameters after some steps of gradients that are now small, now large; in float64."""
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in ((5, 7), (3,), (9, 4))
    ]
    optimizer = make(params, **options)
    for step in range(steps):
        scale = 10.0 ** (step % 7 - 3)
        for param in params:
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = scale * (noise + param.detach())
        optimizer.step()
    return [param.detach() for param in params]
