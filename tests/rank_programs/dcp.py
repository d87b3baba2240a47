"""Runs that go on through ``torch.distributed.checkpoint``, on as many ranks as there are.

Gradients are those of the whole parameters and known by their number, so that ranks do not matter.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from rank_programs.any_torch import distributed_tensor, fully_shard
from steprule.rules import OPTIMIZERS
from steprule.schedules import parse

HALF, WHOLE = 2, 4
# The last of one row: no rank but the first has any of it.
SHAPES = {
    "even": {"a": (4, 6), "b": (8,)},
    "uneven": {"a": (5, 3), "b": (3,), "c": (1, 4)},
    "tensor": {"a": (4, 6), "b": (3, 5)},
    "large": {"a": (64, 256), "b": (8,)},  # so that formats count
}
#: How what is saved is asked for.
WAYS: dict[str, dict[str, Any]] = {
    "nested": {},
    "flat": {"flatten_optimizer_state_dict": True},
    "full": {"full_state_dict": True, "cpu_offload": True},
}


class Case(NamedTuple):
    """One run.

    Attributes:
        name: the optimizer's.
        options: what it is made with.
        shapes: of its parameters, and how they are sharded: a key of ``SHAPES``.
        way: a key of ``WAYS``.
        dtype: of the parameters.
    """

    name: str
    options: dict[str, Any]
    shapes: str = "even"
    way: str = "nested"
    dtype: str = "float32"

    @property
    def text(self) -> str:
        """What it is called in files."""
        options = ",".join(f"{key}={value}" for key, value in self.options.items())
        return f"{self.name}({options}) {self.shapes} {self.way} {self.dtype}"


class Model(nn.Module):
    """Parameters and nothing else."""

    def __init__(self, case: Case, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        for name, shape in SHAPES[case.shapes].items():
            if OPTIMIZERS[case.name.lower()].only_2d and len(shape) != 2:
                continue
            value = torch.randn(shape, generator=generator).to(getattr(torch, case.dtype))
            setattr(self, name, nn.Parameter(value))


class Run:
    """A case's model and optimizer, at the beginning.

    Args:
        case: the case.
        is_sharded: over all ranks there are; else in plain tensors.
        seed: what the parameters' values come of.
    """

    def __init__(self, case: Case, *, is_sharded: bool, seed: int = 0) -> None:
        self.case = case
        self.model = Model(case, seed)
        if is_sharded:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            if case.shapes == "tensor":
                for name, param in list(self.model.named_parameters()):
                    sharded = distribute_tensor(param.detach(), mesh, [Shard(1)])
                    setattr(self.model, name, nn.Parameter(sharded))
            else:
                fully_shard(self.model, mesh=mesh)
        options = {
            key: parse(value) if key == "lr" and isinstance(value, str) else value
            for key, value in case.options.items()
        }
        self.optimizer: Any = OPTIMIZERS[case.name.lower()](
            list(self.model.named_parameters()), **options
        )

    def set_gradients(self, step: int) -> None:
        """Give every parameter the gradient of this number."""
        generator = torch.Generator().manual_seed(100 + step)
        for param in self.model.parameters():
            grad = torch.randn(param.shape, generator=generator).to(param.dtype)
            if isinstance(param, DTensor):
                spread = param.device_mesh, param.placements
                grad = distributed_tensor(grad, *spread)
            param.grad = grad

    def steps(self, begin: int, end: int) -> None:
        """Take the steps of these numbers; no gradients are left."""
        for step in range(begin, end):
            self.set_gradients(step)
            self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def options(self) -> StateDictOptions:
        """The options of the case's way."""
        return StateDictOptions(**WAYS[self.case.way])

    def tensors(self) -> dict[str, Tensor]:
        """All parameters and state by name, whole."""
        found = {}
        for name, param in self.model.named_parameters():
            found[name] = whole(param)
            for key, value in self.optimizer.state.get(param, {}).items():
                found[f"{name}.{key}"] = whole(value)
        return found


def whole(value: Any) -> Tensor:
    """A tensor's elements on all ranks, on each."""
    if isinstance(value, DTensor):
        value = value.full_tensor()
    return torch.as_tensor(value).detach().clone()


def differences(one: dict[str, Tensor], other: dict[str, Tensor]) -> dict[str, str]:
    """What is not the same bit for bit, and by how much."""
    found = dict.fromkeys(one.keys() ^ other.keys(), "missing")
    for key in one.keys() & other.keys():
        a, b = one[key], other[key]
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            found[key] = f"{a.dtype} {tuple(a.shape)}, {b.dtype} {tuple(b.shape)}"
        elif not torch.equal(a, b):
            found[key] = f"{(a.double() - b.double()).abs().max():.1e}"
    return found


def save(rank: int, folder: str, cases: list[Case], *, is_sharded: bool) -> dict[str, Any]:
    """Take half of the steps, save, take the others; return where each case has come to."""
    runs = [Run(case, is_sharded=is_sharded) for case in cases]
    saved = {}
    for run in runs:
        run.steps(0, HALF)
        model, optimizer = get_state_dict(run.model, run.optimizer, options=run.options)
        if run.case.way == "full":  # of which rank 0 has all
            kept = {"model": model, "optimizer": optimizer}
            if rank == 0:
                torch.save(kept, Path(folder, f"{run.case.text}.pt"))
        else:
            saved[run.case.text] = {"model": model, "optimizer": optimizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # one process without a group
        dcp.save(saved, checkpoint_id=Path(folder, "sharded"))
    for run in runs:
        run.steps(HALF, WHOLE)
    return {run.case.text: run.tensors() for run in runs}


def go_on(rank: int, folder: str, cases: list[Case], *, is_sharded: bool) -> dict[str, Any]:
    """Load what :func:`save` left into new runs, and take the other half of the steps."""
    runs = [Run(case, is_sharded=is_sharded, seed=1) for case in cases]
    wanted = {}
    for run in runs:
        if run.case.way != "full":
            model, optimizer = get_state_dict(run.model, run.optimizer, options=run.options)
            wanted[run.case.text] = {"model": model, "optimizer": optimizer}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        dcp.load(wanted, checkpoint_id=Path(folder, "sharded"))
    for i, run in enumerate(runs):
        if run.case.way == "full":
            found = {"model": {}, "optimizer": {}}
            broadcast = is_sharded and i % 2 == 0  # each second from what rank 0 has
            if rank == 0 or not broadcast:
                found = torch.load(Path(folder, f"{run.case.text}.pt"))
            options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=broadcast)
        else:
            found, options = wanted[run.case.text], run.options
        # torch's call for both takes an empty model as one that is not to be loaded.
        set_model_state_dict(run.model, found["model"], options=options)
        set_optimizer_state_dict(run.model, run.optimizer, found["optimizer"], options=options)
        run.steps(HALF, WHOLE)
    return {run.case.text: run.tensors() for run in runs}
