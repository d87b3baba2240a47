"""SAM round Lookahead round AdamW, of sharded parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import steprule
from rank_programs.training import ROWS, numbers, placed

SHAPES = [(8, 6), (7, 5), (4,)]


def _run(spread: Any, whole: Any) -> list[torch.Tensor]:
    params = [nn.Parameter(spread(numbers(s, i).double())) for i, s in enumerate(SHAPES)]
    optimizer = steprule.SAM(
        steprule.Lookahead(steprule.AdamW(params, lr=0.1), k=2), rho=0.5, adaptive=True
    )
    for step in range(4):
        for half in (optimizer.first_step, optimizer.second_step):
            for i, param in enumerate(params):
                noise = spread(numbers(SHAPES[i], 100 * (step + 1) + i).double())
                param.grad = noise + param.detach()
            half()
    return [whole(param).detach().clone() for param in params]


def on_one_process() -> list[torch.Tensor]:
    """The same without ranks."""
    return _run(lambda x: x, lambda x: x)


def rounded(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Slow weights written into rows of bfloat16 at random; and the same in one piece."""
    found = []
    for spread in (lambda x: placed(x, "world", (ROWS,)), lambda x: x):
        param: Any = nn.Parameter(spread(numbers((7, 5), 0).bfloat16()))
        inner = steprule.SGD([param], lr=1e-3, param_rounding="stochastic", engine="eager")
        optimizer = steprule.Lookahead(inner, k=2)
        for step in range(6):
            param.grad = spread(numbers((7, 5), step + 1).bfloat16())
            optimizer.step()
        found.append(param.full_tensor() if hasattr(param, "full_tensor") else param)
    return found[0].detach().clone(), found[1].detach().clone()


def resumed(rank: int, path: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Saved in the midst of a cycle, each rank its part, and loaded; and the run that went on."""
    runs = []
    for _ in range(2):
        whole = [numbers(s, i) for i, s in enumerate(SHAPES)]
        params: list[Any] = [nn.Parameter(placed(x, "world", (ROWS,))) for x in whole]
        runs.append((params, steprule.Lookahead(steprule.AdamW(params, lr=0.1), k=3)))
    (params, optimizer), (others, other) = runs

    def step(params: list[Any], optimizer: Any, first: int, last: int) -> None:
        for k in range(first, last):
            for i, param in enumerate(params):
                grad = numbers(SHAPES[i], 100 * (k + 1) + i)
                param.grad = placed(grad, "world", (ROWS,))
            optimizer.step()

    step(params, optimizer, 0, 4)
    optimizer.save(path)
    with torch.no_grad():
        for param, twin in zip(params, others, strict=True):
            twin.copy_(param)
    other.load(path)
    for one in runs:
        step(*one, 4, 7)
    found = [[p.full_tensor().detach().clone() for p in each] for each, _ in runs]
    return found[0], found[1]


def sharded(rank: int) -> list[torch.Tensor]:
    """Rows of parameters and gradients on two ranks."""
    return _run(lambda x: placed(x, "world", (ROWS,)), lambda x: x.full_tensor())
