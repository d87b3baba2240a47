"""The runs by which optimizers that torch has not are compared with other implementations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

#: By the optimizer's name, and after a plus what else the run is of.
RUNS: dict[str, dict[str, Any]] = {
    "ADOPT": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05},
    "AdEMAMix": {
        "lr": 0.02,
        "betas": (0.9, 0.99, 0.995),
        "alpha": 3.0,
        "alpha_warmup": 30,
        "beta3_warmup": 30,
        "weight_decay": 0.05,
    },
    "AdamW+cautious": {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.05, "cautious": True},
    "AdamW+peak_lr": {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.05, "peak_lr": 0.05},
    "AdaBelief": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-16, "weight_decay": 0.05},
    "Adan": {"lr": 0.02, "betas": (0.98, 0.92, 0.99), "eps": 1e-8, "weight_decay": 0.05},
    "GrokAdamW": {
        "lr": 0.02,
        "betas": (0.9, 0.99),
        "lamb": 1.5,
        "gamma": 0.1,
        "weight_decay": 0.05,
        "clip_grad_norm": 1.0,
        "clip_grad_norm_over": "param",
    },
    "LAMB": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.05},
    "LaProp": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-15},
    "LARS": {
        "lr": 0.5,
        "momentum": 0.9,
        "weight_decay": 0.05,
        "trust_coefficient": 0.02,
        "eps": 1e-8,
        "nesterov": True,
    },
    "Lion": {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.05},
    "Lion+cautious": {"lr": 0.02, "betas": (0.9, 0.99), "weight_decay": 0.05, "cautious": True},
    "MARS": {"lr": 0.02, "betas": (0.95, 0.99), "gamma": 0.1, "weight_decay": 0.05},
    "Prodigy": {"lr": 0.7, "betas": (0.9, 0.99), "weight_decay": 0.05, "d0": 1e-3},
    "QHAdam": {"lr": 0.02, "betas": (0.95, 0.99), "nus": (0.7, 0.9), "weight_decay": 0.05},
    "QHM": {"lr": 0.02, "momentum": 0.9, "nu": 0.7, "weight_decay": 0.05},
    "ScheduleFreeAdamW": {
        "lr": 0.02,
        "betas": (0.95, 0.99),
        "weight_decay": 0.05,
        "warmup_steps": 7,
        "r": 0.5,
        "weight_lr_power": 1.5,
    },
    "ScheduleFreeSGD": {
        "lr": 1e-3,
        "momentum": 0.8,
        "weight_decay": 0.05,
        "warmup_steps": 7,
        "r": 1.0,
    },
    # Its lr is one that float32 has, in which theirs is kept; eps is above what rounding makes of
    # eigenvalues that are 0.
    "Shampoo": {
        "lr": 2.0**-6,
        "betas": (0.9, 0.99),
        "eps": 1e-4,
        "weight_decay": 0.05,
        "precondition_frequency": 2,
        "start_preconditioning_step": 3,
        "precondition_1d": True,
    },
    "Signum": {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05},
    # Sides of more than 8 are left alone, so that the first gradient has as many eigenvalues above
    # 0 as its products on either side have rows: the eigenvectors of others are what rounding makes
    # of them, in each library other ones.
    "SOAP": {
        "lr": 0.02,
        "betas": (0.9, 0.95),
        "shampoo_beta": 0.9,
        "weight_decay": 0.05,
        "precondition_frequency": 3,
        "max_precond_dim": 8,
    },
    "SophiaG": {"lr": 0.02, "betas": (0.965, 0.9), "rho": 2e-4, "weight_decay": 0.05},
    "StableAdamW": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.05},
    "Yogi": {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-3, "weight_decay": 0.05},
}


SHAPES = ((5, 7), (3,), (9, 4))
#: Of those optimizers that are compared with others.
OTHER_SHAPES = {"SOAP": ((5, 5), (3,), (9, 4))}


def groups_of(name: str, params: list[torch.Tensor]) -> list[Any]:
    """Parameters as an optimizer of ours takes them, where a group says what others count."""
    if name == "GrokAdamW":
        return [{"params": [param], "layer": i} for i, param in enumerate(params)]
    return list(params)


def trained(
    make: Callable[..., Any],
    options: dict[str, Any],
    steps: int = 50,
    shapes: Sequence[tuple[int, ...]] = SHAPES,
) -> list[Any]:
    """Parameters after some steps of gradients that are now small, now large; in float64."""
    generator = torch.Generator().manual_seed(0)
    params = [
        torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()
        for shape in shapes
    ]
    optimizer = make(params, **options)
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(steps):
        scale = 10.0 ** (step % 7 - 3)
        for param in params:
            noise = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            param.grad = scale * (noise + param.detach())
        if step % 5 == 0 and hasattr(optimizer, "update_hessian"):
            optimizer.update_hessian()
        optimizer.step()
    if hasattr(optimizer, "eval"):
        optimizer.eval()
    return [param.detach() for param in params]
