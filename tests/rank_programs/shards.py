"""What is looked at of sharded parameters from step to step, on each rank."""

from __future__ import annotations

import gc
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

import steprule
from rank_programs.any_torch import fully_shard
from rank_programs.training import ROWS, numbers, placed
from steprule.distributed.shards import local_of
from steprule.engines.native import loops
from steprule.optimizer.explain import Explanation

SHAPES = [(8, 6), (7, 5), (4,), (6, 4), (1, 5)]  # the last is on one rank only


def _params(shapes: list[Any] = SHAPES, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    whole = [numbers(shape, i).to(dtype) for i, shape in enumerate(shapes)]
    return [nn.Parameter(placed(tensor, "world", (ROWS,))) for tensor in whole]


def _give(params: list[nn.Parameter], step: int) -> None:
    """Give gradients as FSDP2 does: a new tensor each, spread by the very spec of its parameter."""
    for i, param in enumerate(params):
        whole: Any = param
        grad = numbers(tuple(param.shape), 100 * (step + 1) + i).to(param.dtype)
        part = local_of(placed(grad, "world", (ROWS,)))
        param.grad = DTensor(part, whole._spec, requires_grad=False)


def engines_of(optimizer: steprule.Optimizer) -> set[str]:
    """The engines that its parameters run on."""
    shown: Explanation = optimizer.explain()
    return {row.engine for row in shown.rows}


def natively(rank: int, name: str, options: dict[str, Any], engine: str) -> dict[str, Any]:
    """Steps of sharded parameters, and of the same parts as plain tensors."""
    loops.enable_native()
    params = _params()
    plain = [nn.Parameter(local_of(param).detach().clone()) for param in params]
    cls = getattr(steprule, name)
    optimizer, other = (cls(ps, engine=engine, **options) for ps in (params, plain))
    for step in range(6):
        _give(params, step)
        for one, part in zip(params, plain, strict=True):
            assert one.grad is not None
            part.grad = local_of(one.grad).clone()
        engines = engines_of(optimizer) if step == 2 else set()
        optimizer.step()
        other.step()
        if engines:
            seen = engines
    whole = optimizer._plan._whole if optimizer._plan else None
    return {
        "engines": seen,
        "is_whole_step": whole is not None and whole.is_ready(),
        "differences": [
            (local_of(a) - b).abs().max().item()
            for a, b in zip(params, plain, strict=True)
            if b.numel()
        ],
        "are_sharded": all(
            isinstance(value, DTensor) and value.placements == param.placements
            for param in params
            for value in optimizer.state[param].values()
            if value.ndim
        ),
        "versions": [param._version for param in params],
    }


def replaced(rank: int, what: str) -> dict[str, Any]:
    """Something is replaced between two steps: the next one must take what is there now."""
    loops.enable_native()
    params = _params()
    optimizer = steprule.Adam(params, lr=0.1)
    for step in range(5):
        _give(params, step)
        optimizer.step()
    first: Any = params[0]
    moved = first._local_tensor.detach().clone()
    old = first._local_tensor
    if what == "part":
        first._local_tensor = moved
    elif what == "data":
        first._local_tensor.data = moved
    elif what == "part of the state":
        optimizer.state[first]["exp_avg"]._local_tensor = torch.zeros_like(moved)
    elif what == "state":
        kept = optimizer.state[first]["exp_avg"]
        optimizer.state[first]["exp_avg"] = torch.zeros_like(kept)
    before, untouched = local_of(first).detach().clone(), old.detach().clone()
    _give(params, 5)
    optimizer.step()
    return {
        "has_changed": not torch.equal(local_of(first), before),
        "left_alone": what != "part" or torch.equal(old, untouched),
        "exp_avg": local_of(optimizer.state[first]["exp_avg"]).clone(),
        "grad": local_of(first.grad).clone() if first.grad is not None else None,
    }


def gradients_of_other_kinds(rank: int) -> list[float]:
    """Gradients that are spread otherwise than the parameter, or strided."""
    loops.enable_native()
    mesh = init_device_mesh("cpu", (2,))
    whole = numbers((6, 4), 0)
    param = nn.Parameter(distribute_tensor(whole.clone(), mesh, [Shard(0)]))
    alone = nn.Parameter(whole.clone())
    one, other = steprule.AdamW([param]), steprule.AdamW([alone])
    found = []
    for step in range(8):
        grad = numbers((6, 4), 100 + step)
        cut = distribute_tensor(grad.clone(), mesh, [Shard(step % 2)])
        if step % 3 == 2:
            strided = torch.empty(12, 8, dtype=grad.dtype)[::2, ::2]
            strided.copy_(grad)
            cut = DTensor.from_local(
                strided[3 * rank : 3 * rank + 3], mesh, [Shard(0)], run_check=False
            )
        param.grad, alone.grad = cut, grad.clone()
        one.step()
        other.step()
        found.append((param.full_tensor() - alone).abs().max().item())
    return found


def not_on_shards_of_now(rank: int) -> str:
    """State of a parameter that has been sharded otherwise since."""
    mesh = init_device_mesh("cpu", (2,))
    params = _params()
    optimizer = steprule.Adam(params)
    _give(params, 0)
    optimizer.step()
    entry = optimizer.state[params[0]]
    entry["exp_avg"] = entry["exp_avg"].redistribute(mesh, [Shard(1)])
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error)
    return ""


class Layers(nn.Module):
    """A model of several layers, one of them of rows that do not divide."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Linear(7, 3))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


def in_backward(rank: int, options: dict[str, Any], *, is_one_process: bool) -> list[Tensor]:
    """Steps in the backward pass under FSDP2, clipped by the norms of the step before."""
    model = Layers().double()
    if not is_one_process:
        for layer in model.layers:
            if list(layer.parameters()):
                fully_shard(layer)
        fully_shard(model)
    optimizer = steprule.step_in_backward(
        model, lambda params: steprule.AdamW(params, lr=0.01, **options)
    )
    for step in range(5):
        x = torch.randn(8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        part = x if is_one_process else x[rank * 4 : rank * 4 + 4]
        model(part).square().mean().backward()
        assert all(param.grad is None for param in model.parameters())
        optimizer.step()
    return [getattr(p, "full_tensor", lambda p=p: p)().detach() for p in model.parameters()]


def leaks(rank: int, name: str, options: dict[str, Any], steps: int) -> tuple[int, int, int]:
    """Objects and bytes of memory that are there more after so many steps."""
    loops.enable_native()
    params = _params([(16, 8)] * 10)
    optimizer = getattr(steprule, name)(params, **options)

    def run(count: int) -> None:
        for step in range(count):
            _give(params, step % 7)
            optimizer.step()
            optimizer.zero_grad()

    run(50)
    gc.collect()
    objects, pages = len(gc.get_objects()), _pages()
    run(steps)
    gc.collect()
    return len(gc.get_objects()) - objects, (_pages() - pages) * os.sysconf("SC_PAGE_SIZE"), steps


def _pages() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1])


def averaged(rank: int) -> dict[str, Any]:
    """Running averages of sharded parameters, in place and back."""
    params = _params()
    optimizer = steprule.SGD(params, lr=0.1, ema_decay=0.9)
    alone = [nn.Parameter(param.full_tensor().detach().clone()) for param in params]  # type: ignore[operator]
    other = steprule.SGD(alone, lr=0.1, ema_decay=0.9)
    for step in range(4):
        _give(params, step)
        for param, whole in zip(params, alone, strict=True):
            whole.grad = param.grad.full_tensor()  # type: ignore[union-attr,operator]
        optimizer.step()
        other.step()
    before = [local_of(param).clone() for param in params]
    with optimizer.averaged(), other.averaged():
        inside = [
            torch.equal(param.full_tensor(), whole)  # type: ignore[operator]
            for param, whole in zip(params, alone, strict=True)
        ]
    after = [torch.equal(local_of(p), value) for p, value in zip(params, before, strict=True)]
    return {"inside": inside, "after": after}


def zeroed(rank: int) -> list[float]:
    """Gradients that are set to zeros where they are."""
    params = _params()
    _give(params, 0)
    grads = [param.grad for param in params]
    optimizer = steprule.SGD(params)
    optimizer.zero_grad(set_to_none=False)
    assert all(param.grad is grad for param, grad in zip(params, grads, strict=True))
    return [local_of(grad).abs().sum().item() for grad in grads if grad is not None]


def bytes_here(rank: int) -> tuple[int, int]:
    """The bytes of the state, as told and as they are."""
    params = _params()
    optimizer = steprule.Adam(params)
    optimizer.init_state()
    told = optimizer.state_bytes().total
    real = sum(
        local_of(x).numel() * x.element_size() for p in params for x in optimizer.state[p].values()
    )
    return told, real
