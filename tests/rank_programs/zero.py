"""State divided among ranks that have all parameters: by ``shard_state``, and by torch's wrapper.

Gradients are given, the same on every rank, as averaging leaves them: what comes out must be what
one process gets. A world of one divides nothing, so that the same functions run there.
"""

from __future__ import annotations

import copy
import gc
import io
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import steprule
from rank_programs.training import EXAMPLES, loss_of, made, network, numbers, placed
from steprule.distributed import byte_exchange
from steprule.rules import OPTIMIZERS

STEPS = 4
#: Uneven ones, one that is much larger than the others together, and more ranks than parameters.
SHAPES: dict[str, list[tuple[int, ...]]] = {
    "usual": [(8, 6), (6,), (5, 7), (5,), (), (3, 4), (4,)],
    "one large": [(80, 60), (3, 4), (5,)],
    "few": [(7, 6)],
    "large": [(80, 60), (40, 128), (128, 32), (60,)],
}


def is_many() -> bool:
    """Whether there are several ranks."""
    return dist.is_initialized() and dist.get_world_size() > 1


def divided(optimizer: Any) -> Any:
    """The optimizer, its state divided if there is anybody to divide it among."""
    return steprule.shard_state(optimizer) if is_many() else optimizer


def params_of(name: str, shapes: str, dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    """Parameters that an optimizer takes."""
    only_2d = getattr(OPTIMIZERS[name.lower()], "only_2d", False)
    least = 2 if only_2d else getattr(OPTIMIZERS[name.lower()], "needs_sparse", False)
    chosen = [shape for shape in SHAPES[shapes] if len(shape) >= least]
    return [nn.Parameter(numbers(shape, i, dtype)) for i, shape in enumerate(chosen)]


def give(name: str, params: Sequence[Tensor], step: int, grads: str = "finite") -> None:
    """Give parameters their gradients of a step."""
    is_sparse = getattr(OPTIMIZERS[name.lower()], "needs_sparse", False)
    for i, param in enumerate(params):
        grad = numbers(tuple(param.shape), 1000 * (step + 1) + i, param.dtype)
        if grads == "not finite once" and step == 2 and i == 1:
            grad.view(-1)[-1] = torch.inf
        if is_sparse:
            grad = grad.to_sparse(1)
        is_missing = (grads == "now and then" and (step + i) % 3 == 1) or (
            grads == "one is frozen" and i == 0
        )
        param.grad = None if is_missing else grad


def in_groups(params: Sequence[Tensor], several: bool) -> Any:
    """Two groups with names, the second with another lr; or all in one."""
    if not several:
        return params
    named = [(f"p{i}", param) for i, param in enumerate(params)]
    found = [{"params": named[::2]}, {"params": named[1::2], "lr": 0.003}]
    return [group for group in found if group["params"]]


def result_of(params: Sequence[Tensor], optimizer: Any) -> dict[str, Any]:
    """What must be as of one process, on every rank; and what is this rank's own."""
    return {
        "params": [param.detach().clone() for param in params],
        "seen": optimizer.last_step,
        "dict": copy.deepcopy(optimizer.state_dict()),
        "own": sorted(i for i, param in enumerate(params) if optimizer.state.get(param)),
        "bytes": int(optimizer.state_bytes()),
        "explained": str(optimizer.explain()),
    }


def run(
    name: str,
    options: Mapping[str, Any],
    *,
    shapes: str = "usual",
    dtype: torch.dtype = torch.float32,
    groups: bool = False,
    grads: str = "finite",
    steps: int = STEPS,
) -> dict[str, Any]:
    """Take some steps."""
    params = params_of(name, shapes, dtype)
    optimizer = divided(made(name, in_groups(params, groups), options))
    errors = []
    for step in range(steps):
        give(name, params, step, grads)
        try:
            optimizer.step()
            if name == "SophiaG":
                optimizer.update_hessian()
        except RuntimeError as error:
            errors.append(str(error).partition(":")[0])  # who names what, depends on who has it
    return {**result_of(params, optimizer), "errors": errors}


def in_small_messages(shapes: str) -> dict[str, Any]:
    """As a model of many gigabytes has it: several rounds of messages in a step."""
    kept, byte_exchange.AT_ONCE = byte_exchange.AT_ONCE, 256
    try:
        return run("AdamW", {"clip_grad_norm": 0.5}, shapes=shapes)
    finally:
        byte_exchange.AT_ONCE = kept


def each(rank: int, calls: Sequence[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> list[Any]:
    """Call several functions of this module; one that raises is told, not raised."""
    return [_told(globals()[name], *given, **named) for name, given, named in calls]


def _told(function: Callable[..., Any], *given: Any, **named: Any) -> Any:
    try:
        return function(*given, **named)
    except Exception:  # noqa: BLE001  # the other cases go on
        return traceback.format_exc()


def combined() -> dict[str, Any]:
    """A matrix rule and one on elements, under one guard."""
    params = params_of("AdamW", "usual")
    matrices, others = [p for p in params if p.ndim == 2], [p for p in params if p.ndim != 2]
    both = steprule.combine(
        steprule.Muon(matrices), steprule.AdamW(others), clip_grad_norm=0.5, on_nonfinite="skip"
    )
    optimizer = divided(both)
    for step in range(STEPS):
        give("AdamW", params, step)
        optimizer.step()
    return result_of(params, optimizer)


def added() -> dict[str, Any]:
    """Groups that are added between steps, and a parameter put in the place of another."""
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params[:3], clip_grad_norm=0.5))
    for step in range(STEPS):
        if step == 1:
            optimizer.add_param_group({"params": params[3:5], "lr": 0.01})
        if step == 2:
            optimizer.add_param_group({"params": params[5:]})
            before = len(optimizer.param_groups)
            try:
                optimizer.add_param_group({"params": params[5:]})
            except ValueError:
                assert len(optimizer.param_groups) == before
        if step == 3:
            optimizer.state.pop(params[1], None)
            params[1] = nn.Parameter(params[1].detach() + 1)
            optimizer.param_groups[0]["params"][1] = params[1]
        give("AdamW", params, step)
        optimizer.step()
    return result_of(params, optimizer)


def tied() -> dict[str, Any]:
    """Two parameters that share memory, which must be updated one after the other."""
    params = params_of("AdamW", "usual")
    params.append(nn.Parameter(params[2].detach()[1:3]))
    optimizer = divided(steprule.AdamW(params))
    for step in range(STEPS):
        give("AdamW", params, step)
        optimizer.step()
    return result_of(params, optimizer)


def in_layouts() -> dict[str, Any]:
    """Parameters of several dtypes, not in the order of their axes, empty, and frozen."""
    params = [
        nn.Parameter(numbers((4, 3, 5, 5), 0, torch.float32).to(memory_format=torch.channels_last)),
        nn.Parameter(numbers((6, 5), 1, torch.bfloat16)),
        nn.Parameter(numbers((6, 5), 2).t()),
        nn.Parameter(numbers((0, 5), 3)),
        nn.Parameter(torch.complex(numbers((3,), 4), numbers((3,), 5))),
        nn.Parameter(numbers((200,), 6)[::2]),
        nn.Parameter(numbers((500,), 7), requires_grad=False),
    ]
    versions = [param._version for param in params]
    optimizer = divided(steprule.AdamW(params))
    for step in range(STEPS):
        for i, param in enumerate(params[:-1]):
            real = torch.view_as_real(param) if param.is_complex() else param
            grad = numbers(tuple(real.shape), 1000 * (step + 1) + i, real.dtype)
            param.grad = torch.view_as_complex(grad) if param.is_complex() else grad
        optimizer.step()
    result = result_of(params, optimizer)
    changed = [p._version > v for p, v in zip(params, versions, strict=True)]
    assert changed[:3] == [True] * 3
    assert not changed[-1]
    return result


def scheduled_and_hooked() -> dict[str, Any]:
    """Schedules, a scheduler beside them, a closure, hooks, and a scaler that skips a step."""
    params = params_of("AdamW", "usual")
    schedule = steprule.schedules.linear(0.05, 0.01, steps=STEPS)
    optimizer = divided(steprule.AdamW(params, lr=schedule, weight_decay=0.1))
    scheduler = steprule.lr_scheduler.StepLR(divided(steprule.SGD(params_of("SGD", "few"))), 2)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("before"))
    optimizer.register_step_post_hook(lambda *_: calls.append("after"))
    optimizer.register_state_dict_post_hook(lambda _, found: {**found, "more": len(calls)})

    def closure(step: int) -> float:
        give("AdamW", params, step)
        calls.append("closure")
        return 1.0

    for step in range(STEPS):
        assert optimizer.step(lambda step=step: closure(step)) == 1.0
        scheduler.optimizer.step()
        scheduler.step()
    return result_of(params, optimizer)


def scaled() -> dict[str, Any]:
    """A gradient scaler: divides, and passes over a step that is not finite."""
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params))
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for step in range(STEPS):
        give("AdamW", params, step, "not finite once")
        for param in params:
            assert param.grad is not None
            param.grad *= scaler.get_scale()
        scaler.scale(torch.zeros(()))
        scaler.step(optimizer)
        scaler.update()
    # As kernels on a device are told: one rank alone has found something.
    give("AdamW", params, STEPS)
    optimizer.found_inf = torch.tensor(float(not is_many() or dist.get_rank() == 1))
    optimizer.grad_scale = torch.tensor(2.0)
    optimizer.step()
    del optimizer.found_inf, optimizer.grad_scale
    return result_of(params, optimizer)


def trained(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """A model under DDP: each rank has examples of its own."""
    widths = (6, 8, 4)
    plain = network(widths)
    many = is_many()
    model: nn.Module = DistributedDataParallel(plain) if many else plain
    params = list(plain.parameters())
    if getattr(OPTIMIZERS[name.lower()], "only_2d", False):
        params = [param for param in params if param.ndim == 2]
    optimizer = divided(made(name, params, options))
    own = slice(dist.get_rank(), EXAMPLES, dist.get_world_size()) if many else slice(EXAMPLES)
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, widths, step, own).backward()  # type: ignore[arg-type]
        optimizer.step()
    return result_of(params, optimizer)


# What is saved and loaded.


def resumed(
    name: str, options: Mapping[str, Any], saved: Any = None, *, first: int = 0, **more: Any
) -> dict[str, Any]:
    """Go on from a state dict and parameters, or begin; take some steps; return what there is."""
    params = params_of(name, more.pop("shapes", "usual"), more.pop("dtype", torch.float32))
    optimizer = made(name, in_groups(params, more.get("groups", True)), options)
    optimizer = divided(optimizer)
    if saved is not None:
        with torch.no_grad():
            for param, value in zip(params, saved["params"], strict=True):
                param.copy_(value)
        optimizer.load_state_dict(saved["dict"])
    for step in range(first, first + 2):
        give(name, params, step)
        optimizer.step()
    return result_of(params, optimizer)


def loaded_then_divided() -> dict[str, Any]:
    """State that was there before it is divided."""
    params = params_of("AdamW", "usual")
    optimizer = steprule.AdamW(params)
    for step in range(STEPS):
        if step == 2:
            optimizer = divided(optimizer)
        give("AdamW", params, step)
        optimizer.step()
    return result_of(params, optimizer)


def in_file(folder: str, how: str) -> dict[str, Any]:
    """Save to a file in the midst, and load it in a new optimizer."""
    path = Path(folder, "checkpoint")
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params, ema_decay=0.9))
    for step in range(2):
        give("AdamW", params, step)
        optimizer.step()
    if how == "save":
        optimizer.save(path)
    else:
        steprule.save_training(path, optimizer=optimizer, step=2)
    kept = optimizer.state_dict()["state"]
    optimizer = divided(steprule.AdamW(params, ema_decay=0.9))
    if how == "save":
        optimizer.load(path)
    else:
        assert steprule.load_training(path, optimizer=optimizer).step == 2
    again = optimizer.state_dict()["state"]
    for index, entry in kept.items():
        assert all(torch.equal(value, again[index][key]) for key, value in entry.items())
    for step in range(2, 4):
        give("AdamW", params, step)
        optimizer.step()
    return result_of(params, optimizer)


def not_written(folder: str) -> str:
    """Save where nothing can be saved: the first rank's error is everybody's."""
    optimizer = divided(steprule.AdamW(params_of("AdamW", "few")))
    try:
        optimizer.save(Path(folder, "nowhere", "checkpoint"))
    except OSError as error:
        return type(error).__name__
    return "saved"


def averages() -> dict[str, Any]:
    """Parameters at their averages and back."""
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params, ema_decay=0.5, lr=0.1))
    for step in range(STEPS):
        give("AdamW", params, step)
        if step == 0:
            params[0].grad = params[1].grad = None
        optimizer.step()
    before = [param.detach().clone() for param in params]
    with optimizer.averaged():
        inside = [param.detach().clone() for param in params]
        try:
            optimizer.step()
        except RuntimeError as error:
            assert "running averages" in str(error)  # noqa: PT017
        else:
            raise AssertionError("a step among averages")
    after = [param.detach().clone() for param in params]
    assert all(map(torch.equal, before, after))
    return {**result_of(params, optimizer), "inside": inside}


def state_made() -> dict[str, Any]:
    """State that is made before the first step."""
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params))
    optimizer.init_state()
    return result_of(params, optimizer)


def by_torchs_checkpoints() -> dict[str, Any]:
    """torch.distributed.checkpoint's own state dicts, got and set."""
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    with torch.no_grad():
        for i, param in enumerate(model.parameters()):
            param.copy_(numbers(tuple(param.shape), i, torch.float32))
    params = list(model.parameters())
    optimizer = divided(steprule.AdamW(params))
    give("AdamW", params, 0)
    optimizer.step()
    optimizer.zero_grad()
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    optimizer = divided(steprule.AdamW(params))
    set_optimizer_state_dict(model, optimizer, saved)
    give("AdamW", params, 1)
    optimizer.step()
    return result_of(params, optimizer)


# Ranks that do not do alike.


@contextmanager
def caught(errors: list[str]) -> Iterator[None]:
    """Note what is raised within a block."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # which it is, the test says
        errors.append(f"{type(error).__name__}: {error}")
    else:
        errors.append("")


def one_refuses(
    how: str, at: int, options: Mapping[str, Any], name: str = "AdamW"
) -> dict[str, Any]:
    """Rank 0 refuses a step; both go on after it is mended."""
    params = params_of(name, "usual")
    optimizer = divided(made(name, params, options))
    mine = dist.get_rank() == 0 if is_many() else False
    errors: list[str] = []
    is_unchanged = True
    for step in range(STEPS):
        give(name, params, step)
        if step == at and is_many():
            before = _snapshot(params, optimizer)
            with _broken(optimizer, params, how) if mine else nullcontext(), caught(errors):
                optimizer.step(_failing if how == "closure" and mine else None)
            is_unchanged = _are_equal(before, _snapshot(params, optimizer))
            give(name, params, step)
        optimizer.step()
    return {**result_of(params, optimizer), "raised": errors, "is_unchanged": is_unchanged}


def _failing() -> float:
    raise ValueError("this rank's own mistake")


def _snapshot(params: Sequence[Tensor], optimizer: Any) -> list[Tensor]:
    state = [x for param in params for x in optimizer.state.get(param, {}).values()]
    return [x.detach().clone() for x in (*params, *state)]


def _are_equal(before: Sequence[Tensor], after: Sequence[Tensor]) -> bool:
    return len(before) == len(after) and all(map(torch.equal, before, after))


@contextmanager
def _broken(optimizer: Any, params: Sequence[Tensor], how: str) -> Iterator[None]:
    """Make this rank refuse its next step."""
    group = optimizer.param_groups[0]
    own = next(param for param in params if optimizer._owners.has(param))
    if how == "option":
        before, group["lr"] = group["lr"], "fast"
        yield
        group["lr"] = before
    elif how == "gradient":
        own.grad = own.detach().to_sparse()
        yield
    elif how == "hook":
        handle = optimizer.register_step_pre_hook(lambda *_: _failing())
        yield
        handle.remove()
    else:
        assert how == "closure"
        yield


def one_stops_in_the_midst() -> dict[str, Any]:
    """Rank 0 fails while it updates: nobody is left waiting, and all are told."""
    from steprule.planning.plan import Plan

    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params))
    give("AdamW", params, 0)
    optimizer.step()
    errors: list[str] = []
    give("AdamW", params, 1)
    kept = Plan._run
    if dist.get_rank() == 0:

        def fails(*_: Any) -> None:
            raise ValueError("no memory left")

        Plan._run = fails  # type: ignore[method-assign]
    try:
        with caught(errors):
            optimizer.step()
    finally:
        Plan._run = kept  # type: ignore[method-assign]
    return {"raised": errors}


def only_first_saves() -> list[str]:
    """Rank 0 asks for the state dict, the others take a step: both are told."""
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params, ema_decay=0.9))
    errors: list[str] = []
    for errand in ("state_dict", "averaged"):
        give("AdamW", params, 0)
        optimizer.step()
        with caught(errors):
            if dist.get_rank() != 0:
                optimizer.step()
            elif errand == "state_dict":
                optimizer.state_dict()
            else:
                with optimizer.averaged():
                    pass
    with caught(errors):
        if dist.get_rank() != 0:
            optimizer.state_dict()
        else:
            with optimizer.averaged():
                pass
    return errors


def refused() -> dict[str, str]:
    """Everything that is refused by name, with its message."""
    found: dict[str, str] = {}

    def refuse(what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # noqa: BLE001  # which it is, the test says
            found[what] = f"{type(error).__name__}: {error}"
        else:
            found[what] = "was taken"

    shard, own = steprule.shard_state, lambda: params_of("AdamW", "usual")
    rank = dist.get_rank()
    refuse("LBFGS", lambda: shard(steprule.LBFGS(own())))
    refuse("torch's", lambda: shard(torch.optim.AdamW(own())))  # type: ignore[type-var]
    refuse("twice", lambda: shard(shard(steprule.AdamW(own()))))
    refuse("differentiable", lambda: shard(steprule.AdamW(own(), differentiable=True)))
    from torch.distributed.tensor import Shard

    sharded = [nn.Parameter(placed(numbers((4, 6), 0), "world", (Shard(0),)))]
    refuse("DTensor", lambda: shard(steprule.AdamW(sharded)))
    refuse("meta", lambda: shard(steprule.AdamW([nn.Parameter(torch.empty(3, device="meta"))])))
    model = nn.Linear(3, 2)
    stepping = steprule.step_in_backward(model, steprule.AdamW)
    refuse("in backward", lambda: shard(stepping))
    refuse(
        "then in backward",
        lambda: steprule.step_in_backward(model, lambda p: shard(steprule.AdamW(p))),
    )
    refuse(
        "combined after",
        lambda: steprule.combine(shard(steprule.AdamW(own())), steprule.SGD(own())),
    )
    several = own()[: 2 + rank]
    refuse("other parameters", lambda: shard(steprule.AdamW(several)))
    other = [nn.Parameter(torch.zeros(3 + rank)), nn.Parameter(torch.zeros(2))]
    refuse("another shape", lambda: shard(steprule.AdamW(other)))
    only_first = dist.new_group([0])
    refuse("another group", lambda: shard(steprule.AdamW(own()), only_first))
    optimizer = shard(steprule.AdamW(own()))
    refuse("copied", lambda: copy.deepcopy(optimizer))
    refuse("pickled", lambda: pickle.dump(optimizer, io.BytesIO()))
    refuse("added", lambda: optimizer.add_param_group({"params": sharded}))
    assert len(optimizer.param_groups) == 1
    return found


# What is sent.


def messages(
    options: Mapping[str, Any], shapes: str, grads: str = "finite", name: str = "AdamW"
) -> list[list[tuple[str, int]]]:
    """The messages of each step: what, and of how many bytes this rank gives."""
    params = params_of(name, shapes)
    optimizer = divided(made(name, params, options))
    found: list[list[tuple[str, int]]] = []
    sent: list[tuple[str, int]] = []
    wanted = ("all_reduce", "broadcast", "all_gather_single", "all_gather")
    kept = {call: getattr(dist, call) for call in wanted}

    def counted(call: str) -> Callable[..., Any]:
        def send(tensor: Tensor, *given: Any, **named: Any) -> Any:
            own = given[0] if call.startswith("all_gather") else tensor
            sent.append((call, own.nbytes))
            return kept[call](tensor, *given, **named)

        return send

    try:
        for call in wanted:
            setattr(dist, call, counted(call))
        for step in range(3):
            give(name, params, step, grads)
            optimizer.step()
            found.append(sent[:])
            sent.clear()
    finally:
        for call, function in kept.items():
            setattr(dist, call, function)
    return found


def leaks() -> int:
    """How many more tensors there are after 50 steps, with state dicts and guards among them."""
    params = params_of("AdamW", "usual")
    optimizer = divided(steprule.AdamW(params, clip_grad_norm=0.5))

    def some(count: int) -> None:
        for step in range(count):
            give("AdamW", params, step)
            optimizer.step()
            if step % 10 == 0:
                optimizer.state_dict()
        optimizer.zero_grad()

    some(11)
    before = _tensors()
    some(50)
    return _tensors() - before


def _tensors() -> int:
    gc.collect()
    return sum(isinstance(x, Tensor) for x in gc.get_objects())


# torch's wrapper.


def in_torchs_wrapper(
    name: str, options: Mapping[str, Any], *, ours: bool, buckets: bool = False
) -> dict[str, Any]:
    """Steps, a group that is added, and the consolidated state dict, loaded again."""
    from torch.distributed.optim import ZeroRedundancyOptimizer  # its import warns

    cls: Any = OPTIMIZERS[name.lower()] if ours else getattr(torch.optim, name)
    only_2d = getattr(OPTIMIZERS[name.lower()], "only_2d", False)
    params = [p for p in params_of(name, "usual") if p.ndim == 2 or not only_2d]
    options, last = dict(options), {"params": [params[-1]]}
    if options.pop("schedule", False):
        options["lr"] = steprule.schedules.linear(0.05, 0.01, steps=STEPS)
        last["lr"] = 0.01  # type: ignore[assignment]  # the wrapper would hand on the schedule
    more = {"parameters_as_bucket_view": buckets}
    optimizer = ZeroRedundancyOptimizer(params[:-1], cls, **more, **options)
    for step in range(2):
        give(name, params[:-1], step)
        optimizer.step()
    optimizer.add_param_group(dict(last))
    for step in range(2, 4):
        give(name, params, step)
        optimizer.step()
    optimizer.consolidate_state_dict(to=0)
    saved = optimizer.state_dict() if dist.get_rank() == 0 else None
    held: list[Any] = [copy.deepcopy(saved)]
    dist.broadcast_object_list(held, 0)
    again = ZeroRedundancyOptimizer(params, cls, **more, **options)
    groups = [{**group} for group in held[0]["param_groups"]]
    if len(groups) == 2:
        again = ZeroRedundancyOptimizer(params[:-1], cls, **more, **options)
        again.add_param_group(dict(last))
    again.load_state_dict(held[0])
    for step in range(4, 6):
        give(name, params, step)
        again.step()
    again.zero_grad()
    return {
        "params": [param.detach().clone() for param in params],
        "dict": saved,
        "own": sum(len(entry) for entry in again.optim.state.values()),
    }
