"""Optimizers over a few parameters on a device, and the same on the CPU beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import steprule
from steprule.rules import OPTIMIZERS

# More than a chunk, less than a block, matrices, one number.
SIZES = ((130, 131), (41, 101), (13,), (257,), ())
MATRICES = ((48, 40), (48, 40), (40, 48), (24, 96))


def names() -> list[str]:
    """Names of the optimizers whose rule engines with kernels take."""
    return [
        name
        for name, cls in OPTIMIZERS.items()
        if cls.rule is not None and cls.rule.is_recorded and cls.rule.sparse != "only"
    ]


def has_sums(name: str) -> bool:
    """Whether a rule has sums or products, whose last bits depend on the device."""
    from steprule.language.form import form_of

    cls = OPTIMIZERS[name]
    group = cls([torch.zeros(2, 2, requires_grad=True)]).param_groups[0]
    assert cls.rule is not None
    recording = form_of(cls.rule, {**cls.extras, **group}).recording()
    return bool(recording.has_reductions or recording.matrix_operations or recording.has_axes)


@dataclass
class Run:
    """An optimizer and what it has been through."""

    device: torch.device
    optimizer: steprule.Optimizer
    params: list[Tensor]
    steps: int = 0
    kept: list[Any] = field(default_factory=list)

    def set_grads(self, missing: Sequence[int] = (), scale: float = 1.0) -> None:
        """Give every parameter this step's gradient, the same on every device."""
        generator = torch.Generator().manual_seed(self.steps)
        for i, param in enumerate(self.params):
            grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            grad = (scale * grad).to(param.dtype).to(self.device)
            like = torch.empty_like(param)  # laid out as the parameter
            param.grad = None if i in missing else like.copy_(grad)
        self.steps += 1

    def train(self, steps: int, missing: Sequence[Sequence[int]] = ((),)) -> Run:
        """Take steps, some without some gradients."""
        for k in range(steps):
            self.set_grads(missing[k % len(missing)])
            self.optimizer.step()
        return self

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and state, on the CPU."""
        found = {f"param {i}": p.detach().cpu() for i, p in enumerate(self.params)}
        for i, param in enumerate(self.params):
            for key, value in self.optimizer.state.get(param, {}).items():
                found[f"{key} of {i}"] = torch.as_tensor(value).detach().cpu()
        return found

    def engines(self) -> set[str]:
        """The engines that have the parameters."""
        return {row.engine for row in self.optimizer.explain().rows}


def made(
    name: str,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    sizes: Sequence[Sequence[int]] | None = None,
    **options: Any,
) -> Run:
    """An optimizer over parameters that are the same on every device."""
    generator = torch.Generator().manual_seed(0)
    sizes = sizes or (MATRICES if name == "muon" else SIZES)
    params = [
        torch.randn(tuple(size), generator=generator, dtype=torch.float64)
        .to(dtype)
        .to(device)
        .requires_grad_()
        for size in sizes
    ]
    cls: Any = OPTIMIZERS[name]
    return Run(device, cls(params, **options), params)


def check_same(one: Run, other: Run, what: str, *, exact: bool, dtype: torch.dtype) -> None:
    """Compare all parameters and state: bit for bit, or within the dtype's rounding."""
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys(), f"{what}: {mine.keys() ^ theirs.keys()}"
    bound = {torch.float64: 1e-9, torch.float32: 2e-4}.get(dtype, 2e-2)
    for key, value in mine.items():
        expected = theirs[key]
        if exact:
            assert torch.equal(value, expected), f"{what}: {key} differs: {_apart(value, expected)}"
        else:
            torch.testing.assert_close(
                value, expected, rtol=bound, atol=bound, equal_nan=True, msg=f"{what}: {key}"
            )


def _apart(one: Tensor, other: Tensor) -> str:
    a, b = one.double(), other.double()
    where = int((a != b).sum())
    return f"{where} of {a.numel()} numbers, by {float((a - b).abs().max()):.3g} at most"
