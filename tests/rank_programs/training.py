"""Training on many ranks: what each of them has at the end, to be compared with one process.

Parameters, data and gradients are of seeds, so that every rank, and the one process beside them,
draws the same. *Given* gradients are those of the whole, cut as the parameters are: nothing but the
step itself can make a difference then. *Trained* ones come of a backward pass over the rank's own
part of the examples.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.nn.parallel import DistributedDataParallel

import steprule
from rank_programs.any_torch import distributed_tensor, fully_shard
from steprule.rules import OPTIMIZERS

STEPS = 5
WHOLE, ROWS, COLUMNS = Replicate(), Shard(0), Shard(1)

Shape = tuple[int, ...]
#: A shape, the mesh it lies on by name (None for a plain tensor), and how.
Laid = tuple[Shape, str | None, tuple[Any, ...]]

#: How parameters may be spread over two ranks. Shapes are of more than one axis where an optimizer
#: wants matrices; a layout has some of each.
TWO_RANKS: dict[str, list[Laid]] = {
    "even": [
        ((8, 6), "world", (ROWS,)),
        ((4,), "world", (ROWS,)),
        ((6, 4), "world", (ROWS,)),
    ],
    "uneven and empty": [
        ((7, 6), "world", (ROWS,)),
        ((3, 4), "world", (ROWS,)),
        ((1, 5), "world", (ROWS,)),
        ((3,), "world", (ROWS,)),
        ((1,), "world", (ROWS,)),
    ],
    "tensor parallel": [
        ((8, 6), "world", (ROWS,)),
        ((8,), "world", (ROWS,)),
        ((5, 8), "world", (COLUMNS,)),
        ((5,), "world", (WHOLE,)),
    ],
    "tensor parallel, uneven": [((7, 6), "world", (ROWS,)), ((5, 3), "world", (COLUMNS,))],
    "replicated": [((5, 7), "world", (WHOLE,)), ((3,), "world", (WHOLE,)), ((), "world", (WHOLE,))],
    "several meshes": [
        ((8, 6), "world", (ROWS,)),
        ((5, 7), "long", (ROWS,)),
        ((4, 3), "short", (ROWS,)),
        ((6, 6), "grid", (COLUMNS, ROWS)),
        ((3,), "grid", (WHOLE, ROWS)),
    ],
    "plain among them": [
        ((5, 7), None, ()),
        ((7, 6), "world", (ROWS,)),
        ((3,), None, ()),
        ((6, 4), "world", (COLUMNS,)),
    ],
}
#: Rows of whole blocks of 128 elements, which no shard cuts.
IN_BLOCKS: dict[str, list[Laid]] = {
    "blocks": [
        ((8, 256), "world", (ROWS,)),
        ((4, 128), "world", (ROWS,)),
        ((40, 128), "world", (ROWS,)),  # large as a whole, its shards are small
    ],
    "blocks, uneven and empty": [
        ((7, 256), "world", (ROWS,)),
        ((3, 384), "world", (ROWS,)),
        ((1, 128), "world", (ROWS,)),
    ],
    "blocks, tensor parallel": [
        ((4, 512), "world", (COLUMNS,)),
        ((6, 768), "world", (COLUMNS,)),
        ((8, 128), "world", (ROWS,)),
        ((128,), "world", (WHOLE,)),
    ],
}
#: Over four, on a mesh of two by two.
FOUR_RANKS: dict[str, list[Laid]] = {
    "grid": [
        ((8, 6), "grid", (ROWS, COLUMNS)),
        ((7, 5), "grid", (ROWS, ROWS)),
        ((6, 4), "grid", (WHOLE, ROWS)),  # as HSDP has it
        ((5, 6), "grid", (COLUMNS, WHOLE)),
        ((3,), "grid", (WHOLE, WHOLE)),
        ((1, 4), "grid", (ROWS, COLUMNS)),
    ],
    "several meshes": [
        ((7, 6), "grid", (ROWS, COLUMNS)),
        ((4, 5), "long", (ROWS,)),
        ((5, 3), "short", (COLUMNS,)),
        ((9, 2), "world", (ROWS,)),
        ((3, 3), None, ()),
    ],
}


def layouts(world: int) -> dict[str, list[Laid]]:
    """The layouts for so many ranks."""
    return TWO_RANKS | IN_BLOCKS if world == 2 else FOUR_RANKS


_MESHES: dict[str, DeviceMesh] = {}


def mesh_of(name: str) -> DeviceMesh:
    """A mesh: of all ranks in a row, of two by half as many, or one of that one's axes."""
    if not _MESHES:
        world = dist.get_world_size()
        grid = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("long", "short"))
        _MESHES.update(
            world=init_device_mesh("cpu", (world,)),
            grid=grid,
            long=grid["long"],
            short=grid["short"],
        )
    return _MESHES[name]


def shapes_of(laid: Sequence[Laid], name: str) -> list[int]:
    """Which parameters of a layout an optimizer takes."""
    only_2d = getattr(OPTIMIZERS[name.lower()], "only_2d", False)
    return [i for i, (shape, *_) in enumerate(laid) if len(shape) == 2 or not only_2d]


def numbers(shape: Shape, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normally distributed ones, the same wherever they are drawn."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def placed(whole: Tensor, mesh: str | None, placements: tuple[Any, ...]) -> Tensor:
    """A tensor as a layout has it; nobody is told anything, since all have the whole."""
    if mesh is None:
        return whole
    return distributed_tensor(whole, mesh_of(mesh), placements)


def whole_of(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank."""
    found = tensor.detach()
    if not isinstance(found, DTensor):
        return found.clone()
    # gloo sends no integers of 16 bits.
    is_sent = found.dtype not in (torch.int16, torch.uint16)
    return found.full_tensor() if is_sent else found.int().full_tensor().to(found.dtype)


def made(name: str, params: Any, options: Mapping[str, Any]) -> steprule.Optimizer:
    """An optimizer; options that cannot be sent to another process are said in words."""
    options = dict(options)
    if options.pop("schedule", False):
        options["lr"] = steprule.schedules.linear(0.05, 0.01, steps=STEPS)
    return OPTIMIZERS[name.lower()](params, **options)


def in_two_groups(params: Sequence[Tensor]) -> list[dict[str, Any]]:
    """Every other parameter in a group of its own."""
    return [{"params": list(params[::2])}, {"params": list(params[1::2])}]


def result_of(params: Iterable[Tensor], optimizer: steprule.Optimizer) -> dict[str, Any]:
    """What must be alike on every rank."""
    return {
        "params": [whole_of(param) for param in params],
        "seen": optimizer.last_step,
        "state": [
            {
                key: whole_of(value)
                for key, value in optimizer.state[param].items()
                if isinstance(value, Tensor)
            }
            for group in optimizer.param_groups
            for param in group["params"]
        ],
    }


def given(
    laid: Sequence[Laid],
    name: str,
    options: Mapping[str, Any],
    *,
    is_one_process: bool = False,
    dtype: torch.dtype = torch.float64,
    groups: bool = False,
    grads: str = "finite",
    steps: int = STEPS,
) -> dict[str, Any]:
    """Take some steps by gradients that are the same whatever the layout.

    Args:
        laid: shapes, and where they lie.
        name: of the optimizer.
        options: that it is made with.
        is_one_process: whether to lay all of them here, as plain tensors.
        dtype: of the parameters.
        groups: whether to make two.
        grads: one of :data:`GRADS`.
        steps: how many.
    """
    chosen = [laid[i] for i in shapes_of(laid, name)]
    if is_one_process:
        chosen = [(shape, None, ()) for shape, *_ in chosen]
    params = [
        nn.Parameter(placed(numbers(shape, i, dtype), mesh, placements))
        for i, (shape, mesh, placements) in enumerate(chosen)
    ]
    optimizer = made(name, in_two_groups(params) if groups else params, options)
    for step in range(steps):
        for i, (param, (shape, mesh, placements)) in enumerate(zip(params, chosen, strict=True)):
            grad = GRADS[grads](step, i, numbers(shape, 1000 * (step + 1) + i, dtype))
            param.grad = None if grad is None else placed(grad, mesh, placements)
        optimizer.step()
    return result_of(params, optimizer)


def _with_infinity(step: int, i: int, grad: Tensor) -> Tensor:
    """Of the second parameter, in its last element: one rank's alone, where it is cut."""
    if step == 2 and i == 1:
        grad.view(-1)[-1] = torch.inf
    return grad


#: What becomes of a gradient: (step, index, whole) -> whole, or None for none.
GRADS: dict[str, Callable[[int, int, Tensor], Tensor | None]] = {
    "finite": lambda step, i, grad: grad,
    "not finite once": _with_infinity,
    "now and then": lambda step, i, grad: None if (step + i) % 3 == 1 else grad,
    "never": lambda step, i, grad: None,
}


def all_given(
    rank: int, names: Sequence[str], cases: Sequence[tuple[str, dict[str, Any]]], **more: Any
) -> list[Any]:
    """Every case in every layout of those names; a case that raises is told, not raised."""
    laid = layouts(dist.get_world_size())
    return [
        _told(lambda layout=layout, case=case: given(laid[layout], *case, **more))
        for layout in names
        for case in cases
    ]


def _told(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except Exception:  # noqa: BLE001  # the other cases go on
        return traceback.format_exc()


# Models, whose gradients are those of each rank's own examples.

EXAMPLES = 8
WIDTHS = {"even": (6, 8, 4), "uneven": (5, 7, 3, 1)}


def network(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers with tanh between them, in float64."""
    layers: list[nn.Module] = []
    for k, (before, after) in enumerate(itertools.pairwise(widths)):
        layer = nn.Linear(before, after, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(numbers((after, before), 10 + k) / before**0.5)
            layer.bias.copy_(numbers((after,), 20 + k) / 10)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


def loss_of(model: nn.Module, widths: Sequence[int], step: int, part: slice) -> Tensor:
    """The mean over some of a step's examples."""
    x = numbers((EXAMPLES, widths[0]), 100 + step)[part]
    y = numbers((EXAMPLES, widths[-1]), 200 + step)[part]
    return (model(x) - y).square().mean()


def sharded(model: nn.Sequential, mesh: DeviceMesh | None = None) -> nn.Module:
    """FSDP2, each layer a unit."""
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def tensor_parallel(model: nn.Sequential, mesh: DeviceMesh) -> nn.Module:
    """The first layer cut by columns of its output, the second by rows of its input."""
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


#: How a model is spread: (model) -> model, and over how many ranks the examples are.
STRATEGIES: dict[str, Callable[[Any], tuple[nn.Module, int, int]]] = {
    "DDP": lambda m: (DistributedDataParallel(m), dist.get_rank(), dist.get_world_size()),
    "FSDP2": lambda m: (
        sharded(m, mesh_of("world")),
        dist.get_rank(),
        dist.get_world_size(),
    ),
    "TP": lambda m: (tensor_parallel(m, mesh_of("world")), 0, 1),
    "HSDP": lambda m: (sharded(m, mesh_of("grid")), dist.get_rank(), dist.get_world_size()),
    "FSDP2 x TP": lambda m: (
        sharded(tensor_parallel(m, mesh_of("short")), mesh_of("long")),
        mesh_of("long").get_local_rank(),
        mesh_of("long").size(),
    ),
}


def trained(
    strategy: str | None,
    widths: Sequence[int],
    name: str,
    options: Mapping[str, Any],
    *,
    accumulated: int = 1,
    in_backward: bool = False,
    steps: int = STEPS,
) -> dict[str, Any]:
    """Train a model; None as the strategy is one process, which has all examples.

    Args:
        strategy: one of :data:`STRATEGIES`.
        widths: of the layers.
        name: of the optimizer.
        options: that it is made with.
        accumulated: over how many backward passes gradients are added up, not told to other ranks
            before the last.
        in_backward: whether steps are taken in the backward pass.
        steps: how many.
    """
    plain = network(widths)
    model, part, parts = (plain, 0, 1) if strategy is None else STRATEGIES[strategy](plain)
    params = dict(plain.named_parameters())  # those that shards have taken the place of
    if getattr(OPTIMIZERS[name.lower()], "only_2d", False):
        params = {key: param for key, param in params.items() if param.ndim == 2}
    if in_backward:
        optimizer = steprule.step_in_backward(plain, lambda own: made(name, own, options))
    else:
        optimizer = made(name, list(params.values()), options)
    each = EXAMPLES // accumulated
    for step in range(steps):
        for k in range(accumulated):
            is_last = k == accumulated - 1
            own = slice(k * each + part, (k + 1) * each, parts)
            with _not_told(model, is_last):
                (loss_of(model, widths, step, own) / accumulated).backward()
        if name == "LBFGS":
            optimizer.step(
                functools.partial(_loss_everywhere, model, optimizer, widths, step, part, parts)
            )
        else:
            optimizer.step()
        optimizer.zero_grad()
    return result_of(params.values(), optimizer)


def _loss_everywhere(
    model: nn.Module,
    optimizer: steprule.Optimizer,
    widths: Sequence[int],
    step: int,
    part: int,
    parts: int,
) -> Tensor:
    """A closure's loss must be that of all ranks: a line search decides by it."""
    optimizer.zero_grad()
    loss = loss_of(model, widths, step, slice(part, None, parts))
    loss.backward()
    told = loss.detach().clone()
    if parts > 1:
        dist.all_reduce(told)
    return told / parts


def _not_told(model: nn.Module, is_last: bool) -> contextlib.AbstractContextManager[None]:
    if isinstance(model, DistributedDataParallel) and not is_last:
        return model.no_sync()
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
    return contextlib.nullcontext()


def with_sparse_gradients(strategy: str | None, name: str, options: Mapping[str, Any]) -> Any:
    """Train an embedding, whose gradients have some rows only; None is one process."""
    embedding = nn.Embedding(10, 4, sparse=True, dtype=torch.float64)
    with torch.no_grad():
        embedding.weight.copy_(numbers((10, 4), 30))
    model, part, parts = (embedding, 0, 1) if strategy is None else STRATEGIES[strategy](embedding)
    optimizer = made(name, embedding.parameters(), options)
    for step in range(STEPS):
        rows = torch.arange(step, step + EXAMPLES)[part::parts] * 3 % 10
        optimizer.zero_grad()
        (model(rows) * numbers((EXAMPLES, 4), step)[part::parts]).square().mean().backward()
        optimizer.step()
    return result_of(embedding.parameters(), optimizer)


def all_with_sparse_gradients(rank: int, strategy: str, cases: Sequence[Any]) -> list[Any]:
    """Every case; one that raises is told, not raised."""
    return [_told(lambda case=case: with_sparse_gradients(strategy, *case)) for case in cases]


def all_trained(
    rank: int, strategy: str, widths: Sequence[int], cases: Sequence[Any], **more: Any
) -> list[Any]:
    """Every case; one that raises is told, not raised."""
    return [_told(lambda case=case: trained(strategy, widths, *case, **more)) for case in cases]
