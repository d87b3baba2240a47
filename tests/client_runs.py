"""What the tests of other libraries share: a small problem, and runs of it side by side.

A client is driven once with a class of steprule's and once with torch's, from the same weights over
the same batches in the same order. The two agree to float32 rounding over so many steps
(``helpers.TOLERANCES``); a run that is resumed is the uninterrupted one, bit for bit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from helpers import TOLERANCES, rule_optimizers
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

TOLERANCE = TOLERANCES[torch.float32]
#: Optimizers that torch has as well, for parameters of any shape, without a closure.
SHARED = tuple(
    name for name in rule_optimizers(lambda rule: not rule.batched) if hasattr(torch.optim, name)
)


def options_of(name: str) -> dict[str, Any]:
    """Options with which a few steps of an optimizer are told from another's."""
    lr = {"SGD": 0.05, "Adadelta": 1.0, "ASGD": 0.05}.get(name, 0.01)
    return {"lr": lr, **({"momentum": 0.9} if name in ("SGD", "RMSprop") else {})}


def network(seed: int = 0) -> nn.Sequential:
    """Two matrices, two vectors: of 4 numbers, 1."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))


def rows(count: int = 32) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a problem that is not linear."""
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 4, generator=generator)
    return inputs, inputs.sin().sum(1, keepdim=True)


def loader(count: int = 32, batch_size: int = 8) -> DataLoader[Any]:
    """The same batches in the same order, every epoch."""
    return DataLoader(TensorDataset(*rows(count)), batch_size=batch_size)


def assert_close(ours: Any, theirs: Any, **tolerance: float) -> None:
    """Hold two runs to float32 rounding: numbers, tensors, lists and dicts of them."""
    torch.testing.assert_close(ours, theirs, **{**TOLERANCE, **tolerance})


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Hold two values to the same bits, whatever they are made of."""
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype, where
        assert torch.equal(one, other), where
    elif isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}[{key!r}]")
    elif isinstance(one, Iterable) and not isinstance(one, str):
        mine, others = list(one), list(other)
        assert len(mine) == len(others), where
        for i, (a, b) in enumerate(zip(mine, others, strict=True)):
            assert_same(a, b, f"{where}[{i}]")
    else:
        assert one == other, where


def run_example(section: str) -> None:
    """Run what a section of docs/clients.md shows, from top to bottom."""
    page = Path(__file__).parents[1] / "docs" / "clients.md"
    found = re.search(rf"^## {section}$(.*?)(?=^## |\Z)", page.read_text("utf-8"), re.M | re.S)
    assert found, section
    blocks = re.findall(r"```py(?:thon)?\n(.*?)```", found[1], re.S)
    assert blocks, section
    exec(compile("\n".join(blocks), f"{page.name}, {section}", "exec"), {"__name__": "docs"})
