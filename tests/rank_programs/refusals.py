"""Ranks that do not do alike: one raises, one has no gradients, one dies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rank_programs.training import ROWS, made, numbers, placed, result_of, whole_of

SHAPES = [(7, 6), (4,), (6, 3)]


def _params() -> list[nn.Parameter]:
    return [
        nn.Parameter(placed(numbers(shape, i), "world", (ROWS,))) for i, shape in enumerate(SHAPES)
    ]


def _give_gradients(params: list[nn.Parameter], step: int) -> None:
    for i, (param, shape) in enumerate(zip(params, SHAPES, strict=True)):
        param.grad = placed(numbers(shape, 1000 * (step + 1) + i), "world", (ROWS,))


def _break(optimizer: Any, how: str) -> Any:
    """Make this rank refuse its next step; return what mends it."""
    group, first = optimizer.param_groups[0], optimizer.param_groups[0]["params"][0]
    if how == "option":
        before, group["lr"] = group["lr"], "fast"
        return lambda: group.update(lr=before)
    if how == "state":
        state = optimizer.state[first]
        name = next(key for key, value in state.items() if value.ndim)
        kept = state[name]
        state[name] = torch.zeros(3, dtype=kept.dtype)
        return lambda: state.update({name: kept})
    assert how == "hook"

    def refuse(*_: Any) -> None:
        raise ValueError("this rank's own mistake")

    return optimizer.register_step_pre_hook(refuse).remove


def one_refuses(
    rank: int, name: str, options: Mapping[str, Any], how: str, at: int
) -> dict[str, Any]:
    """Rank 0 raises in one step; both go on after it is mended.

    Returns:
        The error of this rank, whether that step changed anything here, and what there is at the
        end.
    """
    params = _params()
    optimizer = made(name, params, options)
    error, is_unchanged = "", True
    for step in range(4):
        _give_gradients(params, step)
        if step == at:
            before = _copied(params, optimizer)
            mend = _break(optimizer, how) if rank == 0 else lambda: None
            try:
                optimizer.step()
            except Exception as raised:  # noqa: BLE001  # which it is, the test says
                error = f"{type(raised).__name__}: {raised}"
            mend()
            is_unchanged = _are_equal(before, _copied(params, optimizer))
        optimizer.step()
    return {"error": error, "is_unchanged": is_unchanged, **result_of(params, optimizer)}


def _copied(params: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    from steprule.distributed.shards import local_of

    state = [value for param in params for value in optimizer.state.get(param, {}).values()]
    return [local_of(x.detach()).clone() for x in [*params, *state]]


def _are_equal(before: list[Tensor], after: list[Tensor]) -> bool:
    # Where there was no state, none may have been made.
    return len(before) == len(after) and all(map(torch.equal, before, after))


def one_has_no_gradients(
    rank: int, name: str, options: Mapping[str, Any], which: tuple[int, ...]
) -> dict[str, Any]:
    """Rank 1 has no gradient of some parameters, rank 0 of all."""
    params = _params()
    optimizer = made(name, params, options)
    for step in range(4):
        _give_gradients(params, step)
        if rank == 1:
            for i in which:
                params[i].grad = None
        optimizer.step()
    # There is less state on this rank: nothing of it can be gathered.
    return {"params": [whole_of(param) for param in params], "seen": optimizer.last_step}


def one_process_with_zeros(
    name: str, options: Mapping[str, Any], which: tuple[int, ...]
) -> dict[str, Any]:
    """The same in one process: the rows of rank 1 have gradients of zeros."""
    params = [nn.Parameter(numbers(shape, i)) for i, shape in enumerate(SHAPES)]
    optimizer = made(name, params, options)
    for step in range(4):
        for i, (param, shape) in enumerate(zip(params, SHAPES, strict=True)):
            param.grad = numbers(shape, 1000 * (step + 1) + i)
            if i in which:
                param.grad[(shape[0] + 1) // 2 :] = 0.0
        optimizer.step()
    return result_of(params, optimizer)


def raised_alike(rank: int, name: str, options: Mapping[str, Any]) -> tuple[str, bool, list[Any]]:
    """One element is infinite, on the last rank: what every rank raises, and goes on from."""
    params = _params()
    optimizer = made(name, params, options)
    _give_gradients(params, 0)
    optimizer.step()
    _give_gradients(params, 1)
    if rank == dist.get_world_size() - 1:
        grad: Any = params[0].grad
        grad._local_tensor.view(-1)[-1] = torch.inf
    before, error = _copied(params, optimizer), ""
    try:
        optimizer.step()
    except RuntimeError as raised:
        error = str(raised)
    is_unchanged = _are_equal(before, _copied(params, optimizer))
    _give_gradients(params, 1)
    optimizer.step()
    return error, is_unchanged, result_of(params, optimizer)["params"]


def usual(name: str, options: Mapping[str, Any], steps: int) -> list[Tensor]:
    """The parameters after so many steps in one process where nothing is wrong."""
    params = [nn.Parameter(numbers(shape, i)) for i, shape in enumerate(SHAPES)]
    optimizer = made(name, params, options)
    for step in range(steps):
        for i, (param, shape) in enumerate(zip(params, SHAPES, strict=True)):
            param.grad = numbers(shape, 1000 * (step + 1) + i)
        optimizer.step()
    return result_of(params, optimizer)["params"]
