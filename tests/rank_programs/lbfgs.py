"""LBFGS on sharded parameters, beside one process that has the parameters whole."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

from rank_programs.any_torch import fully_shard
from steprule.quasi_newton import LBFGS, ranks

# FSDP says so of every layer whose output is a view.
warnings.filterwarnings("ignore", message="FSDP2-wrapped module")

SEARCHES = (None, "strong_wolfe", "more_thuente", "backtracking")


def network(inner: int = 8, dtype: torch.dtype = torch.float64, out: int = 2) -> nn.Module:
    torch.manual_seed(3)
    layers = nn.Linear(4, inner), nn.Tanh(), nn.Linear(inner, out)
    return nn.Sequential(*layers).to(dtype)


def data(dtype: torch.dtype, out: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    y = torch.sin(x.sum(1, keepdim=True)) * torch.arange(1, out + 1)
    return x.to(dtype), y.to(dtype)


def sharded(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    fully_shard(model[0], mesh=mesh)  # type: ignore[index]
    fully_shard(model[2], mesh=mesh)  # type: ignore[index]
    return fully_shard(model, mesh=mesh)


def in_parallel(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    return parallelize_module(model, mesh, {"0": ColwiseParallel(), "2": RowwiseParallel()})


def in_part(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Shard one layer; every rank has the other whole."""
    fully_shard(model[0], mesh=mesh)  # type: ignore[index]
    return model


def in_both(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Tensor parallel along one dimension of the mesh, sharded along the other."""
    return sharded(in_parallel(model, mesh["tp"]), mesh["dp"])


def on_two_meshes(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Each layer is sharded along another dimension of the mesh."""
    fully_shard(model[0], mesh=mesh["dp"])  # type: ignore[index]
    rows = RowwiseParallel(input_layouts=Replicate())
    return parallelize_module(model, mesh["tp"], {"2": rows})


Wrap = Callable[[nn.Module, DeviceMesh], nn.Module]


@dataclass(frozen=True)
class Case:
    """One run, to be made both ways."""

    wrap: Wrap
    inner: int = 8
    out: int = 2
    dtype: torch.dtype = torch.float64
    options: dict[str, Any] = field(default_factory=dict)
    per_layer: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    batches: str = "same"  # or "own": each rank's half
    is_spoilt: bool = False  # one rank has no finite gradient at the second evaluation
    steps: int = 2


def cases() -> dict[str, Case]:
    shards: dict[str, dict[str, Any]] = {
        "even": {"wrap": sharded},
        "uneven": {"wrap": sharded, "inner": 5, "out": 3},
        "empty": {"wrap": sharded, "out": 1},
        "tensor parallel": {"wrap": in_parallel},
        "mixed": {"wrap": in_part, "inner": 5},
    }
    found = {
        f"{name}, {search}": Case(**kind, options={"line_search_fn": search})
        for name, kind in shards.items()
        for search in SEARCHES
    }
    robust, torchs = {"line_search_fn": "more_thuente"}, {"line_search_fn": "strong_wolfe"}
    found |= {
        "own batches": Case(sharded, inner=5, options=torchs, batches="own"),
        "few pairs": Case(in_part, inner=5, options=robust | {"history_size": 3}, steps=4),
        "groups": Case(in_part, options=torchs, per_layer=({"lr": 1.0}, {"lr": 0.3})),
        "frozen": Case(in_part, inner=5, options=robust, per_layer=({"lr": 1.0}, {"lr": 0.0})),
        "bounds": Case(in_part, inner=5, options=robust, per_layer=({"bounds": (-0.3, 0.3)}, {})),
        "bounds beyond zero": Case(
            sharded, inner=5, options=robust, per_layer=({}, {"bounds": (0.1, 0.4)})
        ),
        "compiled passes": Case(in_part, inner=97, options=robust),
        "strict": Case(sharded, options=torchs | {"strict_max_eval": True, "max_eval": 7}),
        "spoilt": Case(sharded, inner=5, options=robust, is_spoilt=True),
        "spoilt, fixed": Case(sharded, inner=5, options={"lr": 0.1}, is_spoilt=True),
        "narrow history": Case(in_part, inner=5, options=robust | {"history_dtype": "float32"}),
        "float32": Case(in_part, inner=5, options=robust | {"max_iter": 5}, dtype=torch.float32),
    }
    return found


def cases_on_four() -> dict[str, Case]:
    return {
        f"{name}, {search}": Case(wrap, inner=inner, options={"line_search_fn": search})
        for name, wrap, inner in (
            ("both", in_both, 8),
            ("both, empty shards", in_both, 2),
            ("replicated shards", sharded, 5),
            ("two meshes", on_two_meshes, 5),
        )
        for search in ("strong_wolfe", "more_thuente")
    }


@contextmanager
def counted() -> Iterator[list[int]]:
    """Collect the length of each message that LBFGS sends, once for each group it goes to."""
    sent: list[int] = []
    kept = ranks.all_reduce

    def all_reduce(vector: Tensor, groups: Any, **keywords: Any) -> None:
        sent.extend(vector.numel() for _ in groups)
        kept(vector, groups, **keywords)

    ranks.all_reduce = all_reduce
    try:
        yield sent
    finally:
        ranks.all_reduce = kept


def groups_of(model: nn.Module, case: Case) -> list[dict[str, Any]]:
    layers = model[0], model[2]  # type: ignore[index]
    return [
        {"params": list(layer.parameters()), **more}
        for layer, more in zip(layers, case.per_layer, strict=True)
    ]


def closure_of(model: nn.Module, optimizer: LBFGS, case: Case, rank: int | None) -> Any:
    """Return the closure; of one process where ``rank`` is None."""
    x, y = data(case.dtype, case.out)
    if case.batches == "own" and rank is not None:
        x, y = x[rank * 6 : rank * 6 + 6], y[rank * 6 : rank * 6 + 6]
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = ((model(x) - y) ** 2).mean()
        loss.backward()
        if case.is_spoilt and calls == 2 and rank != 0:
            weight = next(model.parameters())
            assert weight.grad is not None
            grad = weight.grad
            (grad._local_tensor if isinstance(grad, DTensor) else grad).view(-1)[-1:] = torch.nan
        return loss

    return closure


def run_case(case: Case, mesh: DeviceMesh, rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("ranks", "alone"):
        model = network(case.inner, case.dtype, case.out)
        if name == "ranks":
            model = case.wrap(model, mesh)
        optimizer = LBFGS(
            groups_of(model, case), **{"max_iter": 8, "tolerance_change": 0.0, **case.options}
        )
        closure = closure_of(model, optimizer, case, rank if name == "ranks" else None)
        results = []
        with counted() as sent:
            for _ in range(case.steps):
                optimizer.step(closure)
                results.append(optimizer.result())
        found[name] = {
            "results": results,
            "sent": sent,
            "params": [whole(param) for param in model.parameters()],
            "replicated": [
                param._local_tensor.detach() if isinstance(param, DTensor) else param.detach()
                for param in model.parameters()
                if not isinstance(param, DTensor) or all(p.is_replicate() for p in param.placements)
            ],
        }
    return found


def whole(param: Tensor) -> Tensor:
    param = param.detach()
    # Of a replicated one the full tensor is the local one.
    return (param.full_tensor() if isinstance(param, DTensor) else param).clone()


def run_all(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {name: run_case(case, mesh, rank) for name, case in cases().items()}


def run_on_four(rank: int) -> dict[str, Any]:
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    return {name: run_case(case, mesh, rank) for name, case in cases_on_four().items()}


def quadratic(params: list[nn.Parameter], optimizer: LBFGS) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        x = torch.cat([whole_with_grad(param).reshape(-1) for param in params])
        loss = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()
        loss.backward()
        return loss

    return closure


def whole_with_grad(param: Tensor) -> Tensor:
    return param.full_tensor() if isinstance(param, DTensor) else param


def starts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(8)
    return [
        torch.randn(*shape, generator=generator, dtype=torch.float64) * 0.3 + 0.8
        for shape in ((5, 2), (3,), (2, 4), (1, 3))
    ]


def spread(mesh: DeviceMesh | None) -> list[nn.Parameter]:
    """Return parameters sharded by rows, replicated, sharded by columns, and plain."""
    values = starts()
    if mesh is None:
        return [nn.Parameter(value) for value in values]
    others = [Replicate()] * (mesh.ndim - 1)
    placements = [Shard(0), Replicate(), Shard(1)]
    found = [
        nn.Parameter(distribute_tensor(value, mesh, [*others, placement]))
        for value, placement in zip(values, placements, strict=False)
    ]
    return [*found, nn.Parameter(values[3])]


def run_missing(rank: int) -> dict[str, tuple[Any, list[Tensor]]]:
    """One rank never has a gradient of the first parameter: it is then zeros there."""
    found = {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for name in ("ranks", "alone"):
        params = spread(mesh if name == "ranks" else None)
        optimizer = LBFGS(params, max_iter=10, line_search_fn="more_thuente")
        full = quadratic(params, optimizer)

        def closure(
            params: list[nn.Parameter] = params,
            full: Callable[[], Tensor] = full,
            is_alone: bool = name == "alone",
        ) -> Tensor:
            loss = full()
            if is_alone:
                assert params[0].grad is not None
                params[0].grad[3:] = 0.0  # of five rows the second rank has two
            elif rank == 1:
                params[0].grad = None
            return loss

        optimizer.step(closure)
        found[name] = optimizer.result(), [whole(param) for param in params]
    return found


def run_resumed(rank: int, folder: str) -> dict[str, Any]:
    """A run that is saved and loaded: the same bits as one that was not."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    options: dict[str, Any] = {"max_iter": 3, "history_size": 4, "tolerance_change": 0.0}
    options["line_search_fn"] = "more_thuente"
    params = spread(mesh)
    optimizer = LBFGS(params, **options)
    closure = quadratic(params, optimizer)
    for _ in range(2):
        optimizer.step(closure)
    state = optimizer.state_dict()
    twins = spread(mesh)
    resumed = LBFGS(twins, **options)
    resumed.load_state_dict(state)
    values = [whole(param) for param in params]
    with torch.no_grad():
        for twin, param in zip(twins, params, strict=True):
            twin.copy_(param.detach())
    again = quadratic(twins, resumed)
    saved_as_checkpoint(optimizer, params, folder)
    on = []
    for _ in range(3):
        optimizer.step(closure)
        resumed.step(again)
        on.append((optimizer.result(), resumed.result()))
    pairs = zip(params, twins, strict=True)
    return {
        "results": on,
        "is_same": all(torch.equal(whole(p), whole(t)) for p, t in pairs),
        "at": values,
        "after": [whole(param) for param in params],
        "kinds": {
            key: (type(value).__name__, tuple(getattr(value, "shape", ())))
            for key, value in optimizer.state[params[0]].items()
        },
    }


FORMS = {
    "nested": StateDictOptions(),
    "flat": StateDictOptions(flatten_optimizer_state_dict=True),
}


class Held(nn.Module):
    """Parameters by name, as torch's functions for checkpoints want them."""

    def __init__(self, params: list[nn.Parameter]) -> None:
        super().__init__()
        for i, param in enumerate(params):
            self.register_parameter(f"p{i}", param)


def saved_as_checkpoint(optimizer: LBFGS, params: list[nn.Parameter], folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    for kind, options in FORMS.items():
        packed = get_optimizer_state_dict(Held(params), optimizer, options=options)
        dcp.save({"optimizer": packed}, checkpoint_id=f"{folder}/{kind}")


def loaded_from_checkpoint(
    optimizer: LBFGS, params: list[nn.Parameter], folder: str, kind: str
) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    optimizer.init_state()
    model = Held(params)
    options = FORMS[kind]
    packed = get_optimizer_state_dict(model, optimizer, options=options)
    dcp.load({"optimizer": packed}, checkpoint_id=f"{folder}/{kind}")
    set_optimizer_state_dict(model, optimizer, packed, options=options)


def run_loaded(
    rank: int, folder: str, values: list[Tensor], shape: tuple[int, ...]
) -> dict[str, Any]:
    return {kind: go_on(folder, kind, values, shape) for kind in FORMS}


def go_on(
    folder: str, kind: str, values: list[Tensor], shape: tuple[int, ...]
) -> tuple[list[Tensor], int]:
    """Load what another number of ranks has saved, and go on for three steps."""
    mesh = init_device_mesh("cpu", shape)
    params = spread(mesh)
    with torch.no_grad():
        for param, value in zip(params, values, strict=True):
            if isinstance(param, DTensor):
                param.copy_(distribute_tensor(value, param.device_mesh, param.placements))
            else:
                param.copy_(value)
    options: dict[str, Any] = {"max_iter": 3, "history_size": 4, "tolerance_change": 0.0}
    optimizer = LBFGS(params, line_search_fn="more_thuente", **options)
    loaded_from_checkpoint(optimizer, params, folder, kind)
    closure = quadratic(params, optimizer)
    for _ in range(3):
        optimizer.step(closure)
    return [whole(param) for param in params], optimizer.state[params[0]]["n_iter"]


def run_forms(rank: int) -> dict[str, Any]:
    """States go from one process to many ranks and back."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    options: dict[str, Any] = {"max_iter": 3, "history_size": 4, "tolerance_change": 0.0}
    found = {}
    for name, (first, second) in {
        "to ranks": (None, mesh),
        "from ranks": (mesh, None),
        "alone": (None, None),
    }.items():
        params = spread(first)
        optimizer = LBFGS(params, line_search_fn="more_thuente", **options)
        closure = quadratic(params, optimizer)
        for _ in range(3):
            optimizer.step(closure)
        state = optimizer.state_dict()
        if name == "from ranks":
            state["state"] = {
                key: {k: whole(v) if isinstance(v, Tensor) else v for k, v in entry.items()}
                for key, entry in state["state"].items()
            }
        twins = spread(second)
        with torch.no_grad():
            for twin, param in zip(twins, params, strict=True):
                value = whole(param)
                if isinstance(twin, DTensor):
                    value = distribute_tensor(value, twin.device_mesh, twin.placements)
                twin.copy_(value)
        other = LBFGS(twins, line_search_fn="more_thuente", **options)
        other.load_state_dict(state)
        again = quadratic(twins, other)
        for _ in range(2):
            other.step(again)
        state = other.state[twins[0]]
        found[name] = (
            [whole(param) for param in twins],
            state["n_iter"],
            "pairs" in state,
            len(other.state),
        )
    return found


def run_refused(rank: int) -> dict[str, str]:
    """What can't be done says which parameter, and changes nothing."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    partial = nn.Parameter(DTensor.from_local(torch.ones(2), mesh, [Partial()]))
    sharded = spread(mesh)[0]
    sharded.grad = torch.ones(5, 2, dtype=torch.float64)
    return {
        "partial": refusal([("weight", partial)]),
        "plain gradient": refusal([("weight", sharded)]),
    }


def run_overlapping(rank: int) -> str:
    flat = init_device_mesh("cpu", (4,))
    part = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))["tp"]
    values = (torch.ones(8), flat), (torch.ones(8), part)
    params = [nn.Parameter(distribute_tensor(value, mesh, [Shard(0)])) for value, mesh in values]
    return refusal([("one", params[0]), ("other", params[1])])


def refusal(params: list[tuple[str, Any]]) -> str:
    """Return how LBFGS refuses to move these parameters, which stay as they were."""
    optimizer = LBFGS(params)
    before = [param._local_tensor.clone() for _, param in params]
    try:
        optimizer.step(lambda: 1.0)
    except (ValueError, TypeError) as error:
        assert all(
            torch.equal(param._local_tensor, old)
            for (_, param), old in zip(params, before, strict=True)
        )
        assert not any(optimizer.state.values())
        return str(error)
    return "was not refused"


def failing_closure(rank: int) -> bool:
    """A closure that raises on every rank leaves parameters and state as they were."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    params = spread(mesh)
    optimizer = LBFGS(params, max_iter=4, line_search_fn="more_thuente", history_size=2)
    closure = quadratic(params, optimizer)
    optimizer.step(closure)
    before = [whole(param) for param in params], optimizer.state_dict()["state"]
    calls = 0

    def failing() -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyError("in the closure")
        return closure()

    with suppress(KeyError):
        optimizer.step(failing)
    now = [whole(param) for param in params], optimizer.state_dict()["state"]
    local = [
        [x._local_tensor if isinstance(x, DTensor) else x for x in entry.values()]
        for one in (before[1], now[1])
        for entry in one.values()
    ]
    half = len(local) // 2
    torch.testing.assert_close(before[0], now[0], rtol=0, atol=0)
    for old, new in zip(local[:half], local[half:], strict=True):
        torch.testing.assert_close(old, new, rtol=0, atol=0, equal_nan=True)
    return True
