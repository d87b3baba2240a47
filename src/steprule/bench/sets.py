"""The sets of parameters that steps are timed on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

Shapes = Sequence[tuple[int, ...]]


@dataclass(frozen=True)
class ParamSet:
    """Shapes of parameters.

    Attributes:
        name: on the command line and in the tables.
        about: in words.
        shapes: of the tensors.
        repeats: steps in a row timed as one, so that a reading is far above the clock's grain.
        at_limit: too large for the caches, so that a step can be held against the memory's speed.
    """

    name: str
    about: str
    shapes: Shapes
    repeats: int
    at_limit: bool = False

    @property
    def elements(self) -> int:
        """How many floats the parameters have."""
        return sum(math.prod(shape) for shape in self.shapes)

    def parameters(self) -> list[torch.Tensor]:
        """Return parameters with gradients, in new memory and with the same values every time."""
        generator = torch.Generator().manual_seed(0)
        params = [torch.randn(shape, generator=generator).requires_grad_() for shape in self.shapes]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator) * 1e-2
        return params


SETS: Mapping[str, ParamSet] = {
    one.name: one
    for one in (
        ParamSet("large", "20M floats in 10 tensors", [(2_000_000,)] * 10, 1, at_limit=True),
        ParamSet("small", "500 of 64x64 and 500 of 64", [(64, 64)] * 500 + [(64,)] * 500, 3),
        ParamSet(
            "mlp", "784-200-10, 4 tensors", [(200, 784), (200,), (10, 200), (10,)], repeats=50
        ),
        ParamSet("tiny", "10,000 tensors of 16", [(16,)] * 10_000, 1),
    )
}
