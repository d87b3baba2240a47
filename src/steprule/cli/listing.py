"""`steprule list`: the registry as a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from rich import box
from rich.table import Table

from steprule.cli.surroundings import console
from steprule.rules import OPTIMIZERS

# How the work is done, not what the update is: the same for every optimizer.
NOT_SHOWN = frozenset(
    {"capturable", "differentiable", "engine", "foreach", "fused", "lr", "maximize"}
)

# Wider than any row, where no terminal sets a width: text in a file is cut by nobody.
UNCUT = 1000


def print_optimizers() -> None:
    """Print every optimizer in the registry with its defaults, read off an instance."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("name", no_wrap=True)
    table.add_column("class", no_wrap=True)
    table.add_column("lr", justify="right", no_wrap=True)
    table.add_column("other defaults")
    optimizers: Mapping[str, Callable[..., torch.optim.Optimizer]] = OPTIMIZERS
    for name, cls in optimizers.items():
        defaults = cls([torch.zeros(2, 2, requires_grad=True)]).defaults
        others = ", ".join(
            f"{key}={value}" for key, value in defaults.items() if key not in NOT_SHOWN
        )
        table.add_row(name, cls.__name__, f"{defaults.get('lr', '-')}", others)
    console(UNCUT).print(table)
