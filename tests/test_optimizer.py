"""The base: groups, hooks, closures, state dicts, copies, and what may change between steps."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from typing import Any

import pytest
import torch
from helpers import ENGINES, Case, gradients, make_params, rule_optimizers, run
from torch import nn

import steprule as optim
from steprule.rules import OPTIMIZERS

NAMES = rule_optimizers()


def model() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Module()
    net.base, net.classifier = nn.Linear(3, 4), nn.Linear(4, 2)
    return net


def test_the_articles_parameter_groups() -> None:
    net = model()
    optimizer = optim.SGD(
        [
            {"params": net.base.parameters()},
            {"params": net.classifier.parameters(), "lr": 1e-3},
        ],
        lr=1e-2,
        momentum=0.9,
    )
    assert [g["lr"] for g in optimizer.param_groups] == [1e-2, 1e-3]
    assert [g["momentum"] for g in optimizer.param_groups] == [0.9, 0.9]
    assert isinstance(optimizer, torch.optim.Optimizer)
    optim.set_learning_rate(optimizer, 1e-5)
    assert [g["lr"] for g in optimizer.param_groups] == [1e-5, 1e-5]
    optim.set_learning_rate(optimizer, [0.1, 0.2])
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]
    with pytest.raises(ValueError, match="1 learning rates for 2"):
        optim.set_learning_rate(optimizer, [0.3])
    with pytest.raises(ValueError, match="group 1"):
        optim.set_learning_rate(optimizer, [0.3, -1.0])
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.2]


def test_params_as_tensors_generators_and_names() -> None:
    net = model()
    named = optim.Adam(net.named_parameters())
    assert named.param_groups[0]["param_names"][0] == "base.weight"
    assert named.state_dict()["param_groups"][0]["param_names"][0] == "base.weight"
    plain = optim.Adam(p for p in net.parameters())
    assert len(plain.param_groups[0]["params"]) == 4
    one = optim.Adam([{"params": next(net.parameters())}])
    assert len(one.param_groups[0]["params"]) == 1


def test_the_users_dict_is_left_alone() -> None:
    group = {"params": list(model().parameters())}
    optim.Adam([group])
    assert set(group) == {"params"}


@pytest.mark.parametrize("engine", ENGINES)
def test_a_changed_lr_counts_from_the_next_step(engine: str) -> None:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = optim.SGD([param], lr=0.5, engine=engine)
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step()
    assert param.tolist() == [0.25] * 3


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none: bool) -> None:
    params = make_params("SGD")
    optimizer = optim.SGD(params)
    next(gradients(params, 1))
    optimizer.zero_grad(set_to_none=set_to_none)
    assert all((p.grad is None) if set_to_none else (p.grad == 0).all() for p in params)


def test_closure_is_called_once_with_grad_and_its_loss_returned() -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = optim.SGD([param], lr=0.1)
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        optimizer.zero_grad()
        loss = (param**2).sum()
        loss.backward()
        return loss

    with torch.no_grad():
        loss = optimizer.step(closure)
    assert (loss.item(), calls) == (3.0, [True])
    assert optimizer.step() is None


class Passes(optim.SGD):
    """Overrides step, as users do, and calls the base's."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


class Own(optim.Optimizer):
    """A subclass in torch's manner: its own step, no rule."""

    def __init__(self, params: Any, lr: float = 0.1) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for param in group["params"]:
                param.sub_(group["lr"] * param.grad)


@pytest.mark.parametrize("cls", [optim.SGD, Passes, Own])
def test_step_hooks_run_once_each(cls: Any) -> None:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    optimizer = cls([param], lr=0.5)
    calls: list[str] = []
    handles = [
        optimizer.register_step_pre_hook(lambda *_: calls.append("pre")),
        optimizer.register_step_post_hook(lambda *_: calls.append("post")),
        optim.register_optimizer_step_pre_hook(lambda *_: calls.append("global pre")),
        optim.register_optimizer_step_post_hook(lambda *_: calls.append("global post")),
    ]
    optimizer.step()
    assert calls == ["global pre", "pre", "post", "global post"]
    for handle in handles:
        handle.remove()
    optimizer.step()
    assert len(calls) == 4
    assert param.tolist() == [0.0] * 3


def test_state_dict_hooks() -> None:
    optimizer = optim.SGD(make_params("SGD"))
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("pre"))
    optimizer.register_state_dict_post_hook(lambda _, d: {**d, "extra": 1})
    optimizer.register_load_state_dict_pre_hook(
        lambda _, d: {k: v for k, v in d.items() if k != "extra"}
    )
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("loaded"))
    saved = optimizer.state_dict()
    assert saved["extra"] == 1
    optimizer.load_state_dict(saved)
    assert calls == ["pre", "loaded"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
@pytest.mark.parametrize("name", NAMES)
def test_copies_go_on_alike(name: str, copied: Any) -> None:
    params, optimizer = run(OPTIMIZERS[name.lower()], Case(name, {}), steps=3)
    twin = copied(optimizer)
    twins = twin.param_groups[0]["params"]
    assert twins[0] is not params[0]
    for _ in gradients(params, 3):
        for mine, theirs in zip(params, twins, strict=True):
            theirs.grad = mine.grad.clone()
        optimizer.step()
        twin.step()
    assert all(map(torch.equal, params, twins))
    assert repr(twin) == repr(optimizer)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_reference_cycle_keeps_the_optimizer_alive(engine: str) -> None:
    _, optimizer = run(optim.Adam, Case("Adam", {}), steps=2, engine=engine)
    gone = weakref.ref(optimizer)
    gc.collect()
    gc.disable()
    try:
        del optimizer
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("name", NAMES)
def test_init_state_changes_nothing_that_follows(name: str) -> None:
    options = {"momentum": 0.9, "dampening": 0.5} if name == "SGD" else {}
    cls = OPTIMIZERS[name.lower()]
    params, twins = make_params(name), make_params(name)
    explicit, lazy = cls(params, **options), cls(twins, **options)
    explicit.init_state()
    for _ in gradients(params, 3):
        for mine, theirs in zip(params, twins, strict=True):
            theirs.grad = mine.grad
        explicit.step()
        lazy.step()
    assert all(map(torch.equal, params, twins))


def test_state_dict_survives_torch_save_without_pickle() -> None:
    _, optimizer = run(optim.Adam, Case("Adam", {"amsgrad": True}), steps=2)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))


def test_load_keeps_the_identity_of_list_dicts_and_state() -> None:
    params, optimizer = run(optim.Adam, Case("Adam", {}), steps=2)
    groups, group, state = optimizer.param_groups, optimizer.param_groups[0], optimizer.state
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups is groups
    assert groups[0] is group
    assert optimizer.state is state
    next(gradients(params, 1))
    optimizer.step()


def test_old_checkpoints_load() -> None:
    """Number-valued steps, and options that did not exist yet, which keep their present values."""
    params, optimizer = run(optim.Adam, Case("Adam", {}), steps=2)
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["step"] = 2
    for key in ("maximize", "foreach", "capturable", "differentiable", "fused"):
        del saved["param_groups"][0][key]
    successor = optim.Adam(params, maximize=True)
    successor.load_state_dict(saved)
    next(gradients(params, 1))
    successor.step()
    assert successor.param_groups[0]["maximize"] is True
    assert successor.state[params[0]]["step"].item() == 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_load_casts_to_the_parameters_dtype(dtype: torch.dtype) -> None:
    _, optimizer = run(optim.Adam, Case("Adam", {}), steps=2)
    params = make_params("Adam", dtype)
    other = optim.Adam(params)
    other.load_state_dict(optimizer.state_dict())
    assert other.state[params[0]]["exp_avg"].dtype == dtype
    assert other.state[params[0]]["step"].dtype == torch.float32


BETWEEN_STEPS = {
    "data swapped": lambda o, p: setattr(p[0], "data", p[0].data * 2),
    "state entry replaced": lambda o, p: o.state[p[0]].update(
        exp_avg=torch.ones_like(p[0]), step=torch.tensor(7.0)
    ),
    "state moved in place": lambda o, p: setattr(
        o.state[p[0]]["exp_avg"], "data", torch.ones_like(p[0])
    ),
    "state shared": lambda o, p: [t.share_memory_() for t in o.state[p[0]].values()],
    "params shared": lambda o, p: p[0].data.share_memory_(),
    "entry cleared": lambda o, p: o.state[p[0]].clear(),
    "state cleared": lambda o, p: o.state.clear(),
    "state reassigned": lambda o, p: setattr(o, "state", copy.copy(o.state)),
    "flag turned on": lambda o, p: o.param_groups[0].update(amsgrad=True),
    "decay turned on": lambda o, p: o.param_groups[0].update(weight_decay=0.1),
    "betas changed": lambda o, p: o.param_groups[0].update(betas=(0.5, 0.9)),
    "parameter dropped": lambda o, p: o.param_groups[0]["params"].pop(),
    "order turned": lambda o, p: o.param_groups[0]["params"].reverse(),
    "group added": lambda o, p: o.add_param_group({"params": [torch.ones(2, requires_grad=True)]}),
    "layout changed": lambda o, p: setattr(p[0], "data", p[0].data.t().contiguous().t()),
    "gradient missing": lambda o, p: setattr(p[1], "grad", None),
    "engine changed": lambda o, p: setattr(o, "engine", "eager"),
}


@pytest.mark.filterwarnings("ignore:.*runs on engine 'foreach'")
@pytest.mark.parametrize("change", BETWEEN_STEPS)
def test_what_changes_between_fused_steps_counts(change: str) -> None:
    """Nothing is cached_lookup that may have changed: as eager, which remembers nothing."""
    results = []
    for engine in ("fused", "eager"):
        params = make_params("Adam")
        optimizer = optim.Adam(params, engine=engine)
        for i, _ in enumerate(gradients(params, 5)):
            if i == 3:
                BETWEEN_STEPS[change](optimizer, params)
            optimizer.step()
        results.append(params)
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-6)


def test_to_moves_the_state_and_leaves_the_counts() -> None:
    params, optimizer = run(optim.Adam, Case("Adam", {}), steps=1)
    assert optimizer.to("meta") is optimizer
    entry = optimizer.state[params[0]]
    assert entry["exp_avg"].is_meta
    assert not entry["step"].is_meta


def test_torchs_schedulers_and_scaler_work_on_ours() -> None:
    params = make_params("SGD")
    optimizer = optim.SGD(params, lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = params[0].detach().clone()
    scaler.scale(params[0].sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    scheduler.step()
    torch.testing.assert_close(params[0], before - 1.0)
    assert optimizer.param_groups[0]["lr"] == 0.5
    params[0].grad = torch.full_like(params[0], float("inf"))
    scaler.step(optimizer)
    torch.testing.assert_close(params[0], before - 1.0)


def test_differentiable_passes_gradients_through_the_step() -> None:
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    start = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for cls in (optim.SGD, optim.Adam):
        param = start.clone()
        param.grad = torch.full_like(param, 2.0)
        optimizer = cls([param], lr=lr, differentiable=True)
        optimizer.step()
        (slope,) = torch.autograd.grad(param.sum(), lr)
        expected = -6.0 if cls is optim.SGD else -3.0
        assert slope.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("prepare", ["explain", "init_state"])
def test_a_first_step_is_still_the_first_after_a_round_trip(prepare: str) -> None:
    """State made ahead of the first step holds zeros, which dampening must not take for history."""
    params = [torch.ones(3, requires_grad=True) for _ in range(2)]
    options = {"lr": 1.0, "momentum": 0.9, "dampening": 0.5}
    optimizers = [OPTIMIZERS["sgd"]([param], **options) for param in params]
    for param in params:
        param.grad = torch.ones(3)
    getattr(optimizers[0], prepare)()
    optimizers[0].load_state_dict(optimizers[0].state_dict())
    for optimizer in optimizers:
        optimizer.step()
    assert torch.equal(*params)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_maximizes_when_told_so(name: str) -> None:
    """It goes the way of minimizing by the negative gradient."""
    cls: Any = OPTIMIZERS[name]
    moved = []
    for maximize in (False, True):
        param = torch.zeros(4, 4, requires_grad=True)
        optimizer = cls([param], maximize=maximize)
        sign = -1 if maximize else 1

        def closure(param: torch.Tensor = param, sign: int = sign) -> torch.Tensor:
            gradient = sign * torch.arange(1.0, 17.0).reshape(4, 4)
            param.grad = gradient.to_sparse() if name == "sparseadam" else gradient
            return (param.detach() * gradient).sum()

        for _ in range(2):
            optimizer.step(closure)
        moved.append(param.detach().clone())
    assert torch.equal(*moved)
    assert moved[0].any()
