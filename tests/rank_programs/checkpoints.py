"""Runs that go on from steprule's own files, on as many ranks as there are."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

import steprule
from rank_programs.any_torch import distributed_tensor, fully_shard
from rank_programs.dcp import HALF, WHOLE, Case, Run, whole
from rank_programs.lbfgs import quadratic, spread
from steprule.checkpoints import on_ranks
from steprule.checkpoints.file import opened
from steprule.checkpoints.shard_files import _File

FILE = "run"


def parts_of(runs: list[Run]) -> dict[str, Any]:
    """What is saved of runs: all in one checkpoint."""
    return {
        "model": {run.case.text: run.model for run in runs},
        "optimizer": {run.case.text: run.optimizer for run in runs},
    }


def save(rank: int, folder: str, cases: list[Case], *, is_sharded: bool) -> dict[str, Any]:
    """Take half of the steps, save, take the others; return where each case has come to."""
    runs = [Run(case, is_sharded=is_sharded) for case in cases]
    for run in runs:
        run.steps(0, HALF)
    steprule.save_training(Path(folder, FILE), **parts_of(runs), step=HALF)
    for run in runs:
        run.steps(HALF, WHOLE)
    return {run.case.text: run.tensors() for run in runs}


def go_on(rank: int, folder: str, cases: list[Case], *, is_sharded: bool) -> dict[str, Any]:
    """Load what :func:`save` left into new runs, and take the other half of the steps."""
    runs = [Run(case, is_sharded=is_sharded, seed=1) for case in cases]
    assert steprule.load_training(Path(folder, FILE), **parts_of(runs)).step == HALF
    for run in runs:
        run.steps(HALF, WHOLE)
    return {run.case.text: run.tensors() for run in runs}


class Mixed(nn.Module):
    """A sharded layer, a plain one, buffers, tied weights, and parameters spread otherwise."""

    def __init__(self, *, is_sharded: bool, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = nn.Linear(3, 5)
        self.norm = nn.BatchNorm1d(5)
        self.last = nn.Linear(5, 3)
        self.tied = nn.Linear(3, 5)
        self.tied.weight = self.first.weight
        self.complex = nn.Parameter(torch.randn(3, 2, dtype=torch.complex64))
        self.whole = nn.Parameter(torch.randn(4))
        self.register_buffer("count", torch.tensor(seed))
        if is_sharded:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            fully_shard([self.first, self.tied], mesh=mesh)
            split = distribute_tensor(self.complex.detach(), mesh, [Shard(0)])
            self.complex = nn.Parameter(split)
            self.whole = nn.Parameter(distribute_tensor(self.whole.detach(), mesh, [Replicate()]))


class MixedRun:
    """A :class:`Mixed` model with optimizers and schedulers of ours and torch's.

    Args:
        is_sharded: over all ranks.
        seed: what its parameters' values come of.
    """

    def __init__(self, *, is_sharded: bool, seed: int = 0) -> None:
        self.model = Mixed(is_sharded=is_sharded, seed=seed)
        named = dict(self.model.named_parameters())
        ours = [(k, v) for k, v in named.items() if k != "last.weight"]
        self.ours = steprule.AdamW(ours, lr=0.1, amsgrad=True)
        self.theirs: Any = torch.optim.Adam([*named.items()][:2], lr=0.01)
        self.schedulers: list[Any] = [
            steprule.lr_scheduler.StepLR(self.ours, 1, 0.5),
            torch.optim.lr_scheduler.StepLR(self.theirs, 1, 0.5),
        ]

    @property
    def parts(self) -> dict[str, Any]:
        """What is saved of it."""
        return {
            "model": self.model,
            "optimizer": {"ours": self.ours, "theirs": self.theirs},
            "schedulers": self.schedulers,
        }

    def steps(self, begin: int, end: int) -> None:
        """Take the steps of these numbers."""
        for step in range(begin, end):
            generator = torch.Generator().manual_seed(step)
            for param in self.model.parameters():
                grad = torch.randn(param.shape, generator=generator, dtype=param.dtype)
                if isinstance(param, DTensor):
                    where = param.device_mesh, param.placements
                    grad = distributed_tensor(grad, *where)
                param.grad = grad
            for optimizer in (self.ours, self.theirs):
                optimizer.step()
            for scheduler in self.schedulers:
                scheduler.step()

    def tensors(self) -> dict[str, Tensor]:
        """All there is by name, whole."""
        found = {key: whole(value) for key, value in self.model.state_dict().items()}
        for which, optimizer in (("ours", self.ours), ("theirs", self.theirs)):
            for i, entry in optimizer.state_dict()["state"].items():
                found |= {f"{which}.{i}.{key}": whole(value) for key, value in entry.items()}
            found[f"{which}.lr"] = torch.tensor(optimizer.param_groups[0]["lr"])
        return found


def save_mixed(rank: int, folder: str, *, is_sharded: bool) -> dict[str, Tensor]:
    """Save a :class:`MixedRun` with random states and something extra."""
    run = MixedRun(is_sharded=is_sharded)
    run.steps(0, 2)
    torch.manual_seed(100 + rank)
    extra = {"best": 0.5, "of rank": rank, "weight": run.model.first.weight.detach()}
    steprule.save_training(Path(folder, FILE), **run.parts, step=2, extra=extra, random_state=True)
    found = {"drawn": torch.rand(3), "weight": whole(extra["weight"])}
    run.steps(2, 4)
    return run.tensors() | found


def go_on_mixed(rank: int, folder: str, *, is_sharded: bool) -> dict[str, Tensor]:
    """Go on from :func:`save_mixed`."""
    run = MixedRun(is_sharded=is_sharded, seed=1)
    found = steprule.load_training(Path(folder, FILE), **run.parts, random_state=True)
    drawn = torch.rand(3)
    assert found.step == 2
    assert found.extra["of rank"] == 0
    assert type(found.extra["weight"]) is Tensor
    run.steps(2, 4)
    return run.tensors() | {"drawn": drawn, "weight": found.extra["weight"]}


def random_states_of_fewer(rank: int, folder: str) -> str:
    """Say why more ranks than have saved their random states can't have them."""
    try:
        steprule.load_training(Path(folder, FILE), random_state=True)
    except steprule.CheckpointError as problem:
        return str(problem)
    return ""


def fail_together(rank: int, folder: str) -> dict[str, Any]:
    """Save; then have the second rank fail in several ways; tell what each raised and left."""
    run = MixedRun(is_sharded=True)
    path = Path(folder, FILE)
    save_training = steprule.save_training
    save_training(path, **run.parts, extra="first")
    before = sorted(x.name for x in path.parent.iterdir())
    found: dict[str, Any] = {}

    def attempt(name: str, extra: Any = None) -> None:
        try:
            save_training(path, **run.parts, extra=extra)
            raised = None
        except Exception as problem:  # noqa: BLE001
            raised = type(problem).__name__, str(problem)
        dist.barrier()
        files = sorted(x.name for x in path.parent.iterdir())
        found[name] = raised, files == before, steprule.load_training(path).extra

    attempt("a value", {"there": object()} if rank else None)
    kept = on_ranks.write_to

    def full(*args: Any, **keywords: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    try:
        if rank == 1:
            on_ranks.write_to = full
        attempt("a full disk")
        on_ranks.write_to = kept
        if rank == 0:

            def first_only(*args: Any, **keywords: Any) -> Any:
                return (kept if keywords else full)(*args, **keywords)

            on_ranks.write_to = first_only
        attempt("the index")
    finally:
        on_ranks.write_to = kept
    mesh = init_device_mesh("cpu", (2,))
    more = distributed_tensor(torch.ones(4), mesh, [Shard(0)])
    attempt("other things", more if rank == 0 else None)
    save_training(path, **run.parts, extra="second")
    found["after"] = steprule.load_training(path).extra, len(list(path.parent.iterdir()))
    return found


def what_is_read(rank: int, folder: str) -> dict[str, Any]:
    """Save, load, and tell which files' pieces this rank has looked at."""
    run = Run(Case("AdamW", {}, "large"), is_sharded=True)
    run.steps(0, 1)
    path = Path(folder, FILE)
    run.optimizer.save(path)
    seen: list[str] = []
    kept = _File.read

    def noted(self: Any, box: Any) -> Tensor:
        seen.append(self.path.name)
        return kept(self, box)

    other = Run(run.case, is_sharded=True, seed=1)
    try:
        _File.read = noted  # type: ignore[method-assign]
        other.optimizer.load(path)
    finally:
        _File.read = kept  # type: ignore[method-assign]
    return {"files": {name.partition("-")[0].rpartition(".")[2] for name in seen}}


def several_saves(rank: int, folder: str, count: int) -> list[list[str]]:
    """Save so often; return what lies there after each."""
    run = Run(Case("AdamW", {}, "even"), is_sharded=True)
    run.steps(0, 1)
    found = []
    for _ in range(count):
        run.optimizer.save(Path(folder, FILE))
        found.append(sorted(each.name for each in Path(folder).iterdir()))
        dist.barrier()
    return found


def load_damaged(rank: int, folder: str) -> tuple[str, bool]:
    """Load what is damaged; return what was raised, and whether nothing has changed."""
    run = Run(Case("AdamW", {}, "large"), is_sharded=False, seed=1)
    run.steps(0, 1)
    before = run.tensors()
    try:
        steprule.load_training(Path(folder, FILE), model=run.model, optimizer=run.optimizer)
    except steprule.CheckpointError as problem:
        now = run.tensors()
        return str(problem), all(torch.equal(before[key], now[key]) for key in before)
    return "", False


def save_large(rank: int, folder: str) -> None:
    """Save a run with parts in the second rank's file."""
    run = Run(Case("AdamW", {}, "large"), is_sharded=True)
    run.steps(0, 1)
    steprule.save_training(Path(folder, FILE), model=run.model, optimizer=run.optimizer)


def on_a_grid(rank: int, folder: str) -> list[str]:
    """Save and load on a mesh of two dimensions, sharded by FSDP on top of tensor parallelism."""
    wrong = []
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "model"))
    for shape in ((8, 4), (7, 4), (3, 5), (1, 4)):
        for split in (Shard(0), Shard(1)):
            values = {}
            for seed in (0, 1):
                torch.manual_seed(seed)
                layer = nn.Linear(shape[1], shape[0], bias=False)
                split_weight = distributed_tensor(layer.weight.detach(), mesh["model"], [split])
                layer.weight = nn.Parameter(split_weight)
                fully_shard(layer, mesh=mesh["data"])
                values[seed] = layer
            path = Path(folder, FILE)
            steprule.save_training(path, model=values[0])
            steprule.load_training(path, model=values[1])
            one, other = (values[i].weight for i in (0, 1))
            torch.manual_seed(0)
            expected = nn.Linear(shape[1], shape[0], bias=False).weight
            with opened(path) as checkpoint:
                saved = checkpoint.content["model"][""]["state_dict"]["weight"].clone()
            if not torch.equal(one.to_local(), other.to_local()) or not torch.equal(
                saved, expected
            ):
                wrong.append(f"{shape} {split}")
            dist.barrier()
    return wrong


def save_lbfgs(rank: int, folder: str) -> tuple[list[Tensor], list[Tensor]]:
    """Save an LBFGS in the middle; return where it was, and where it has come to."""
    params, optimizer = _lbfgs()
    closure = quadratic(params, optimizer)
    for _ in range(2):
        optimizer.step(closure)
    at = [whole(param) for param in params]
    optimizer.save(Path(folder, FILE))
    optimizer.step(closure)
    return at, [whole(param) for param in params]


def go_on_lbfgs(rank: int, folder: str, at: list[Tensor]) -> list[Tensor]:
    """Go on from :func:`save_lbfgs`."""
    params, optimizer = _lbfgs()
    with torch.no_grad():
        for param, value in zip(params, at, strict=True):
            if isinstance(param, DTensor):
                where = param.device_mesh, param.placements
                value = distributed_tensor(value, *where)
            param.copy_(value)
    optimizer.load(Path(folder, FILE))
    optimizer.step(quadratic(params, optimizer))
    return [whole(param) for param in params]


def _lbfgs() -> tuple[list[nn.Parameter], steprule.LBFGS]:
    params = spread(init_device_mesh("cpu", (dist.get_world_size(),)))
    options: dict[str, Any] = {"max_iter": 3, "history_size": 4, "tolerance_change": 0.0}
    return params, steprule.LBFGS(params, line_search_fn="more_thuente", **options)
