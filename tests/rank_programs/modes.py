"""Schedule-free optimizers on several ranks: train and eval mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import steprule
from rank_programs.training import ROWS, numbers, placed

SHAPES = [(8, 6), (7, 5), (4,)]


def _numbers(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return numbers(shape, seed).double()


def _run(params: list[nn.Parameter], optimizer: Any, spread: Any = None) -> dict[str, Any]:
    """What parameters are in each mode, in train mode, eval mode and train mode again."""
    for step in range(3):
        for i, param in enumerate(params):
            grad = _numbers(SHAPES[i], 100 * (step + 1) + i)
            param.grad = grad if spread is None else spread(grad)
        optimizer.step()
    found = {}
    for name, mode in (("y", optimizer.train), ("x", optimizer.eval), ("again", optimizer.train)):
        mode()
        whole = [p.full_tensor() if spread is not None else p for p in map(_any, params)]
        found[name] = [p.detach().clone() for p in whole]
    return found


def _any(param: Any) -> Any:
    return param


def _optimizer(params: list[nn.Parameter]) -> Any:
    return steprule.ScheduleFreeAdamW(params, lr=0.1)


def on_one_process() -> tuple[Any, Any, Any]:
    """The same without ranks."""
    params = [nn.Parameter(_numbers(shape, i)) for i, shape in enumerate(SHAPES)]
    found = _run(params, _optimizer(params))
    return found["y"], found["x"], found["again"]


def divided(rank: int) -> dict[str, Any]:
    """State divided among ranks; then a change of mode to which one rank does not come."""
    params = [nn.Parameter(_numbers(shape, i)) for i, shape in enumerate(SHAPES)]
    optimizer = steprule.shard_state(_optimizer(params))
    found: dict[str, Any] = _run(params, optimizer)
    before = [param.detach().clone() for param in params]
    try:
        if rank == 0:
            optimizer.eval()
        else:
            optimizer.state_dict()
    except RuntimeError as error:
        found["refused"] = str(error)
    if rank == 1:
        found["refused"] = found["refused"].replace("state_dict()", "eval()")
    assert all(map(torch.equal, params, before))
    assert optimizer.param_groups[0]["train_mode"] is True
    return found


def sharded(rank: int) -> dict[str, Any]:
    """Parameters that are sharded."""

    def spread(whole: torch.Tensor) -> Any:
        return placed(whole, "world", (ROWS,))

    params = [nn.Parameter(spread(_numbers(shape, i))) for i, shape in enumerate(SHAPES)]
    return _run(params, _optimizer(params), spread)
