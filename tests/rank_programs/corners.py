"""Where ranks differ, and rules that are taken apart in odd ways."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import steprule
from rank_programs.training import COLUMNS, ROWS, WHOLE, numbers, placed
from steprule.distributed.shards import local_of
from steprule.engines.native import loops
from steprule.ops import max_of, mean_of, norm_of, sum_of


@steprule.rule
def largest_of_rows(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * grad / (1 + max_of(grad, axis=-1)) / (1 + norm_of(grad, over="all"))


@steprule.rule
def norm_of_means(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * grad / (1 + norm_of(mean_of(grad, axis=-2)))


@steprule.rule
def norm_of_norms(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * grad / (1 + norm_of(norm_of(grad, axis=-1)))


@steprule.rule
def mean_of_means(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * grad / (1 + mean_of(mean_of(grad, axis=-2)))


@steprule.rule
def sum_of_rows_of_means(param: Any, grad: Any, *, lr: Any) -> Any:
    return param - lr * grad / (1 + sum_of(mean_of(grad * grad, axis=-2), axis=-1))


RULES: dict[str, Any] = {
    name: globals()[name]
    for name in (
        "largest_of_rows",
        "norm_of_means",
        "norm_of_norms",
        "mean_of_means",
        "sum_of_rows_of_means",
    )
}


def odd_rules(rank: int, engine: str) -> dict[tuple[str, str], float]:
    """How far each rule is from one process, by how its parameters are cut."""
    found = {}
    for name, rule in RULES.items():
        for cut in (ROWS, COLUMNS, WHOLE):
            shapes = [(8, 6), (5, 4)]
            params = [
                nn.Parameter(placed(numbers(shape, i), "world", (placement,)))
                for i, (shape, placement) in enumerate(zip(shapes, (cut, WHOLE), strict=True))
            ]
            alone = [nn.Parameter(numbers(shape, i)) for i, shape in enumerate(shapes)]
            cls = steprule.make_optimizer(rule, lr=0.1)
            one, other = cls(params, engine=engine), cls(alone, engine=engine)
            for step in range(3):
                for i, (param, whole) in enumerate(zip(params, alone, strict=True)):
                    whole.grad = numbers(shapes[i], 100 * (step + 1) + i)
                    laid: Any = param
                    param.grad = placed(whole.grad.clone(), "world", tuple(laid.placements))
                one.step()
                other.step()
            found[name, str(cut)] = max(
                (param.full_tensor() - whole).abs().max().item()  # type: ignore[operator]
                for param, whole in zip(params, alone, strict=True)
            )
    return found


def _sharded(shapes: list[tuple[int, ...]]) -> list[nn.Parameter]:
    return [
        nn.Parameter(placed(numbers(shape, i), "world", (ROWS,))) for i, shape in enumerate(shapes)
    ]


def _give(params: list[nn.Parameter], step: int) -> None:
    for i, param in enumerate(params):
        grad = numbers(tuple(param.shape), 100 * (step + 1) + i)
        laid: Any = param
        param.grad = placed(grad, "world", tuple(laid.placements))


def _all(params: list[nn.Parameter], optimizer: Any) -> list[Tensor]:
    state = [value for p in params for value in optimizer.state.get(p, {}).values()]
    return [local_of(x.detach()).clone() for x in [*params, *state]]


def _raised_by(step: Callable[[], Any]) -> str:
    try:
        step()
    except Exception as error:  # noqa: BLE001  # which it is, the test says
        return f"{type(error).__name__}: {error}"
    return ""


def refused(rank: int, what: str) -> dict[str, Any]:
    """A step that one rank has to refuse: the errors, and whether anything has changed."""
    shapes = [(4, 6), (4, 6), (6, 4)]
    params = _sharded(shapes)
    optimizer: Any
    if what == "Muon":
        optimizer = steprule.Muon(params, lr=0.1)
    elif what == "LAMB on foreach":
        optimizer = steprule.LAMB(params, lr=0.1, engine="foreach")
    else:
        optimizer = steprule.combine(
            steprule.LAMB(params[:2], lr=0.1), steprule.AdamW(params[2:], lr=0.1)
        )
    for step in range(3):
        _give(params, step)
        optimizer.step()
    _give(params, 3)
    if rank == 0:
        if what == "Muon":
            params[0].grad = None
        else:
            params[0].grad = torch.zeros(4, 6, dtype=torch.float64)
    before = _all(params, optimizer)
    error = _raised_by(optimizer.step)
    after = _all(params, optimizer)
    _give(params, 3)
    optimizer.step()
    return {
        "error": error,
        "is_unchanged": all(map(torch.equal, before, after)),
        "params": [p.full_tensor().detach() for p in params],  # type: ignore[operator]
    }


def skipped_alike(rank: int, where: str) -> tuple[bool, bool, bool]:
    """An infinite number that some ranks alone would see: whether the step was skipped, twice."""
    if where == "grid":
        mesh = init_device_mesh("cpu", (2, 2))
        laid = [(Shard(0), Replicate()), (Replicate(), Shard(0))]
        params = [
            nn.Parameter(distribute_tensor(numbers((4, 4), i), mesh, list(placements)))
            for i, placements in enumerate(laid)
        ]
    else:
        params = [*_sharded([(4, 4)]), nn.Parameter(numbers((3, 3), 1))]
    optimizer = steprule.SGD(params, lr=0.1, on_nonfinite="skip")
    found = []
    for step in range(3):
        for i, param in enumerate(params):
            grad = numbers(tuple(param.shape), 10 * (step + 1) + i)
            whole: Any = param
            if isinstance(param, DTensor):
                param.grad = distribute_tensor(grad, whole.device_mesh, list(whole.placements))
            else:
                param.grad = grad
        if rank == 0 and step == 1:
            bad = params[0] if where == "grid" else params[1]
            assert bad.grad is not None
            local_of(bad.grad)[0, 0] = torch.inf
        optimizer.step()
        found.append(optimizer.last_step.skipped)
    return found[0], found[1], found[2]


def _replicated_mesh() -> DeviceMesh:
    return init_device_mesh("cpu", (2, 2))


def replicas_refuse(rank: int) -> tuple[str, bool]:
    """Under HSDP one rank refuses: its replicas must not go on without it."""
    mesh = _replicated_mesh()
    params = [
        nn.Parameter(distribute_tensor(numbers((4, 4), i), mesh, [Replicate(), Shard(0)]))
        for i in range(2)
    ]
    optimizer = steprule.SGD(params, lr=0.1, momentum=0.9, clip_grad_norm=1.0)

    def give(step: int) -> None:
        for i, param in enumerate(params):
            grad = numbers((4, 4), 10 * (step + 1) + i)
            param.grad = distribute_tensor(grad, mesh, [Replicate(), Shard(0)])

    give(0)
    optimizer.step()
    give(1)
    if rank == 0:
        optimizer.param_groups[0]["momentum"] = "x"
    before = _all(params, optimizer)
    error = _raised_by(optimizer.step)
    optimizer.param_groups[0]["momentum"] = 0.9
    is_unchanged = all(map(torch.equal, before, _all(params, optimizer)))
    optimizer.step()
    return error, is_unchanged


def explained_on_one(rank: int) -> bool:
    """explain() on one rank alone, where gradients are spread otherwise than parameters."""
    params = _sharded([(4, 6), (6, 4)])
    optimizer = steprule.AdamW(params)
    for step in range(3):
        for i, param in enumerate(params):
            grad = numbers(tuple(param.shape), 10 * (step + 1) + i)
            param.grad = placed(grad, "world", (COLUMNS,))
        if rank == 0:
            assert "fused" in str(optimizer.explain())
        optimizer.step()
    return True


def with_a_frozen_one(rank: int) -> bool:
    """Whether steps are whole ones beside a parameter that has no gradient."""
    loops.enable_native()
    params = _sharded([(4, 6), (6, 4), (4, 4)])
    params[2].requires_grad_(False)
    optimizer = steprule.Adam(params)
    for step in range(6):
        for i, param in enumerate(params[:2]):
            whole: Any = param
            part = local_of(placed(numbers(tuple(param.shape), 10 * step + i), "world", (ROWS,)))
            param.grad = DTensor(part, whole._spec, requires_grad=False)
        optimizer.step()
    whole_steps = optimizer._plan._whole if optimizer._plan else None
    return whole_steps is not None and whole_steps.is_ready()
