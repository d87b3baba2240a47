"""What is logged of sharded parameters: on each rank the numbers of the whole."""

from __future__ import annotations

from torch import nn

import steprule
from rank_programs.training import ROWS, WHOLE, numbers, placed

SHAPES = [(8, 6), (1, 5), (4, 4)]  # the second is on one rank only


def logged(rank: int) -> tuple[dict[str, float], dict[str, float]]:
    """The same step logged of parameters that are spread, and of whole ones."""
    cuts = (ROWS, ROWS, WHOLE)
    laid = [
        nn.Parameter(placed(numbers(shape, i), "world", (cut,)))
        for i, (shape, cut) in enumerate(zip(SHAPES, cuts, strict=True))
    ]
    whole = [nn.Parameter(numbers(shape, i)) for i, shape in enumerate(SHAPES)]
    found: list[dict[str, float]] = []
    for params in (laid, whole):
        optimizer = steprule.AdamW(params, lr=0.1)
        steprule.log_to(lambda values, step: found.append(values), optimizer, every=1)
        for i, (param, shape, cut) in enumerate(zip(params, SHAPES, cuts, strict=True)):
            grad = numbers(shape, 100 + i)
            param.grad = placed(grad, "world", (cut,)) if params is laid else grad
        optimizer.step()
    return found[0], found[1]
