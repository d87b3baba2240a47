"""What the tests of storage formats share: runs with formats, and their choices."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from helpers import elementwise_optimizers
from torch import Tensor

import steprule
from steprule.rules import OPTIMIZERS

STATE_FORMATS = ("param", "float32", "bfloat16", "int8", "int4")
ROUNDINGS = ("nearest", "stochastic", "kahan", "split", "split24")
NAMES = elementwise_optimizers()
# One above and one below the size from which formats count, the last block not full.
SIZES = ((41, 101), (13,))
# Options with which a rule has all the state that it can have.
FULL: dict[str, dict[str, Any]] = {"SGD": {"momentum": 0.9}}


class Run(NamedTuple):
    """An optimizer and its parameters."""

    optimizer: steprule.Optimizer
    params: list[Tensor]

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and state by name."""
        found = {f"{i}": p.detach() for i, p in enumerate(self.params)}
        for i, p in enumerate(self.params):
            entry = self.optimizer.state.get(p, {})
            found |= {f"{i}.{key}": torch.as_tensor(x) for key, x in entry.items()}
        return found


def made(name: str, dtype: torch.dtype = torch.float32, *, seed: int = 0, **options: Any) -> Run:
    """An optimizer over parameters of some sizes."""
    torch.manual_seed(seed)
    params = [torch.randn(size).to(dtype).requires_grad_() for size in SIZES]
    cls: Any = OPTIMIZERS[name.lower()]
    return Run(cls(params, **{**FULL.get(name, {}), **options}), params)


def trained(run: Run, first: int, last: int) -> Run:
    """The run after steps with the gradients of these numbers."""
    for k in range(first, last):
        generator = torch.Generator().manual_seed(k)
        for p in run.params:
            p.grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        run.optimizer.step()
    return run


def check_same(one: Run, other: Run) -> None:
    """Compare all parameters and state bit for bit."""
    a, b = one.tensors(), other.tensors()
    assert a.keys() == b.keys()
    for key in a:
        assert a[key].dtype == b[key].dtype, key
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, equal_nan=True, msg=key)
