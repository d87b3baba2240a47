"""A whole run in one file: model, optimizers, schedulers, random states; all or nothing."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import needs_torch
from nested_values import same
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

import steprule
from steprule.checkpoints.file import opened
from steprule.lr_scheduler import CosineAnnealingLR, LambdaLR, SequentialLR, StepLR


def net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def batch() -> Tensor:
    return torch.randn(8, 3)


def train(model: nn.Module, optimizer: Any, scheduler: Any, steps: int) -> None:
    """Steps that depend on torch's random generator."""
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch()).pow(2).sum().backward()
        optimizer.step()
        scheduler.step()


def made(seed: int, lr: float = 0.1) -> tuple[nn.Module, Any, Any]:
    model = net(seed)
    optimizer = steprule.Adam(model.named_parameters(), lr=lr)
    return model, optimizer, StepLR(optimizer, 2, 0.5)


def state_of(*objects: Any) -> list[Any]:
    return [copy.deepcopy(each.state_dict()) for each in objects]


def test_a_run_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    path = tmp_path / "run.safetensors"
    whole = made(0)
    torch.manual_seed(7)
    train(*whole, 3)
    model, optimizer, scheduler = whole
    steprule.save_training(
        path,
        model=model,
        optimizer=optimizer,
        schedulers=scheduler,
        step=3,
        extra={"best": 0.5},
        random_state=True,
    )
    train(*whole, 4)
    resumed = made(1)
    model, optimizer, scheduler = resumed
    found = steprule.load_training(
        path, model=model, optimizer=optimizer, schedulers=scheduler, random_state=True
    )
    assert (found.step, found.extra) == (3, {"best": 0.5})
    assert all(report.is_exact for report in found.reports.values())
    train(*resumed, 4)
    assert same(state_of(*resumed), state_of(*whole))


@pytest.mark.parametrize("kind", ["dict", "list"])
def test_several_of_each(tmp_path: Path, kind: str) -> None:
    def form(a: Any, b: Any) -> Any:
        return {"actor": a, "critic": b} if kind == "dict" else [a, b]

    one, two, new_one, new_two = (made(seed) for seed in range(4))
    for each in (one, two):
        train(*each, 2)
    parts = [form(a, b) for a, b in zip(one, two, strict=True)]
    steprule.save_training(
        tmp_path / "run", model=parts[0], optimizer=parts[1], schedulers=parts[2]
    )
    model, optimizer, schedulers = (form(a, b) for a, b in zip(new_one, new_two, strict=True))
    found = steprule.load_training(
        tmp_path / "run", model=model, optimizer=optimizer, schedulers=schedulers
    )
    assert same(state_of(*new_one, *new_two), state_of(*one, *two))
    second = "critic" if kind == "dict" else "1"
    assert found.reports.keys() >= {f"model.{second}", f"optimizer.{second}"}
    with pytest.raises(steprule.CheckpointError, match=r"has 2 optimizers .*load_training"):
        one[1].load(tmp_path / "run")
    with pytest.raises(steprule.CheckpointError, match="asked for were one"):
        steprule.load_training(tmp_path / "run", optimizer=one[1])


def test_an_optimizer_is_loaded_from_the_file_of_a_run(tmp_path: Path) -> None:
    model, optimizer, scheduler = made(0)
    train(model, optimizer, scheduler, 2)
    steprule.save_training(tmp_path / "run", model=model, optimizer=optimizer)
    _, other, _ = made(1)
    assert other.load(tmp_path / "run").is_exact
    assert same(other.state_dict()["state"], optimizer.state_dict()["state"])
    steprule.save_training(tmp_path / "model", model=model)
    with pytest.raises(steprule.CheckpointError, match="no optimizer's state"):
        other.load(tmp_path / "model")
    with pytest.raises(steprule.CheckpointError, match="it has none"):
        steprule.load_training(tmp_path / "model", optimizer=other)


def test_torchs_own_classes_are_saved_as_well(tmp_path: Path) -> None:
    def torchs(seed: int) -> tuple[nn.Module, Any, Any]:
        model = net(seed)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        return model, optimizer, torch.optim.lr_scheduler.StepLR(optimizer, 2)

    one, other = torchs(0), torchs(1)
    train(*one, 3)
    for name, parts in (("save", one), ("load", other)):
        getattr(steprule, f"{name}_training")(
            tmp_path / "run", model=parts[0], optimizer=parts[1], schedulers=parts[2]
        )
    assert same(state_of(*other), state_of(*one))


def test_a_model_that_has_changed(tmp_path: Path) -> None:
    model, optimizer, scheduler = made(0)
    train(model, optimizer, scheduler, 2)
    path = tmp_path / "run"
    steprule.save_training(path, model=model, optimizer=optimizer)
    torch.manual_seed(1)
    changed = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 5), nn.Linear(5, 1)
    )
    fresh = steprule.Adam(changed.named_parameters(), lr=0.7)
    before = state_of(changed, fresh)
    with pytest.raises(ValueError, match=r"model: the checkpoint is of another model"):
        steprule.load_training(path, model=changed, optimizer=fresh)
    assert same(state_of(changed, fresh), before)
    found = steprule.load_training(path, model=changed, optimizer=fresh, strict=False, keep=("lr",))
    assert found.reports["model"].missing == ("'4.weight'", "'4.bias'")
    assert len(found.reports["model"].reshaped) == 2
    assert found.reports["optimizer"].missing == ("'4.weight'", "'4.bias'")
    assert fresh.param_groups[0]["lr"] == 0.7
    assert torch.equal(changed[0].weight, model[0].weight)
    assert torch.equal(changed[1].running_mean, model[1].running_mean)
    assert torch.equal(changed[3].weight, before[0]["3.weight"])


def test_a_model_whose_parts_were_renamed(tmp_path: Path) -> None:
    model, optimizer, scheduler = made(0)
    train(model, optimizer, scheduler, 2)
    steprule.save_training(tmp_path / "run", model=model, optimizer=optimizer)
    renamed = nn.ModuleDict({"body": net(1)})
    fresh = steprule.Adam(renamed.named_parameters(), lr=0.7)
    steprule.load_training(
        tmp_path / "run", model=renamed, optimizer=fresh, rename=lambda name: f"body.{name}"
    )
    assert same(list(renamed.state_dict().values()), list(model.state_dict().values()))
    table = {name: f"body.{name}" for name in model.state_dict()}  # buffers among them
    steprule.load_training(tmp_path / "run", model=renamed, optimizer=fresh, rename=table)
    with pytest.raises(ValueError, match=r"nothing of the name '0\.wait' was saved"):
        steprule.load_training(tmp_path / "run", model=renamed, rename={"0.wait": "x"})


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(100, 100), "b": nn.Linear(100, 100)})
    model["b"].weight = model["a"].weight
    steprule.save_training(tmp_path / "run", model=model)
    assert (tmp_path / "run").stat().st_size < 45_000
    other = copy.deepcopy(model)
    nn.init.zeros_(other["a"].weight)
    steprule.load_training(tmp_path / "run", model=other)
    assert torch.equal(other["b"].weight, model["a"].weight)


def test_the_version_of_modules_is_kept(tmp_path: Path) -> None:
    model = net()
    steprule.save_training(tmp_path / "run", model=model)
    seen = []
    other = net(1)
    other[1]._register_load_state_dict_pre_hook(lambda state, prefix, meta, *_: seen.append(meta))
    steprule.load_training(tmp_path / "run", model=other)
    assert [meta["version"] for meta in seen] == [2]


def test_what_is_kept_beside_low_precision_weights_goes_with_them(tmp_path: Path) -> None:
    def low(seed: int, rounding: str) -> tuple[nn.Module, Any]:
        model = net(seed).bfloat16()
        return model, steprule.Adam(model.named_parameters(), lr=1e-4, param_rounding=rounding)

    model, optimizer = low(0, "split")
    for _ in range(3):
        model(batch().bfloat16()).pow(2).sum().backward()
        optimizer.step()
    steprule.save_training(tmp_path / "run", model=model, optimizer=optimizer)
    other = low(1, "kahan")
    steprule.load_training(tmp_path / "run", model=other[0], optimizer=other[1])
    name, wide = "param:compensation", optimizer.state[model[0].weight]
    assert any(key.startswith("param:") for key in wide), wide.keys()
    kept = other[1].state[other[0][0].weight]
    assert any(key.startswith("param:") and kept[key].abs().sum() > 0 for key in kept), name


def test_random_states_come_back(tmp_path: Path) -> None:
    def drawn() -> list[Any]:
        return [torch.rand(2), np.random.rand(2), random.random()]  # noqa: NPY002

    steprule.save_training(tmp_path / "run", random_state=True)
    first = drawn()
    steprule.load_training(tmp_path / "run", random_state=True)
    assert same(drawn(), first)
    assert not same(drawn(), first)
    steprule.save_training(tmp_path / "without", step=1)
    with pytest.raises(steprule.CheckpointError, match="has no random states"):
        steprule.load_training(tmp_path / "without", random_state=True)


def test_schedulers_keep_what_is_asked(tmp_path: Path) -> None:
    model = net()
    optimizer = steprule.SGD(model.parameters(), lr=1.0)
    scheduler = CosineAnnealingLR(optimizer, T_max=10)
    train(model, optimizer, scheduler, 4)
    steprule.save_training(tmp_path / "run", optimizer=optimizer, schedulers=scheduler)
    again = steprule.SGD(model.parameters(), lr=1.0)
    longer = CosineAnnealingLR(again, T_max=20)
    steprule.load_training(tmp_path / "run", optimizer=again, schedulers=longer, keep=("T_max",))
    assert (longer.T_max, longer.last_epoch) == (20, 4)
    assert again.param_groups[0]["lr"] == pytest.approx(longer.lr_at(4)[0])
    with pytest.raises(ValueError, match="neither an optimizer nor a scheduler here has 'T_mxa'"):
        steprule.load_training(tmp_path / "run", optimizer=again, keep="T_mxa")


class Refusing(StepLR):
    def load_state_dict(self, state_dict: Any, **keep: Any) -> None:
        super().load_state_dict(state_dict, **keep)
        raise RuntimeError("too old")


def test_a_scheduler_that_refuses_leaves_all_as_it_was(tmp_path: Path) -> None:
    one = made(0)
    both = SequentialLR(one[1], [StepLR(one[1], 1), StepLR(one[1], 2)], [2])
    train(*one, 3)
    steprule.save_training(
        tmp_path / "run", model=one[0], optimizer=one[1], schedulers=[both, one[2]]
    )
    model, optimizer, scheduler = made(1, lr=0.9)
    both = SequentialLR(optimizer, [StepLR(optimizer, 1), StepLR(optimizer, 2)], [2])
    refusing = Refusing(optimizer, 3)
    train(model, optimizer, scheduler, 1)
    before = state_of(model, optimizer, scheduler, both, refusing)
    with pytest.raises(RuntimeError, match="too old"):
        steprule.load_training(
            tmp_path / "run", model=model, optimizer=optimizer, schedulers=[both, refusing]
        )
    assert same(state_of(model, optimizer, scheduler, both, refusing), before)


def test_an_optimizer_of_another_kind_leaves_all_as_it_was(tmp_path: Path) -> None:
    one = made(0)
    train(*one, 3)
    parts = dict(zip(("model", "optimizer", "schedulers"), one, strict=True))
    steprule.save_training(tmp_path / "run", **parts)
    model = net(1)
    optimizer = steprule.Adamax(model.named_parameters())
    scheduler = SequentialLR(
        optimizer, [LambdaLR(optimizer, lambda _: 1.0), StepLR(optimizer, 3)], [2]
    )
    before = state_of(model, optimizer, scheduler)
    with pytest.raises(ValueError, match="is not one of Adamax"):
        steprule.load_training(
            tmp_path / "run", model=model, optimizer=optimizer, schedulers=scheduler
        )
    assert same(state_of(model, optimizer, scheduler), before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": 3}, "model must have state_dict and load_state_dict, got int"),
        ({"optimizer": {"a": None}}, r"optimizer\['a'\] must have state_dict"),
        ({"schedulers": [object()]}, r"schedulers\['0'\] must have"),
        ({"step": 1.5}, r"step must be an integer, got 1\.5"),
        ({"step": True}, "step must be an integer"),
        ({"extra": {"loss": lambda: 0}}, r"extra\['loss'\] is of type function"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        steprule.save_training(tmp_path / "run", **arguments)
    assert not list(tmp_path.iterdir())


def most_allocated(call: Callable[[], Any]) -> int:
    """The bytes of tensors that there were at once inside, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        call()
    now = most = 0
    for event in found.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.filterwarnings("ignore")  # the profiler's
def test_no_more_than_one_tensor_is_in_memory_twice(tmp_path: Path) -> None:
    count, size = 6, 1 << 18

    def made() -> Any:
        return steprule.Adam([torch.ones(size, requires_grad=True) for _ in range(count)])

    optimizer = made()
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones(size)
    optimizer.step()
    one, state = 4 * size, 2 * count * 4 * size
    assert most_allocated(lambda: optimizer.save(tmp_path / "file")) <= one

    def open_only() -> None:
        with opened(tmp_path / "file"):
            pass

    mapped = most_allocated(open_only)  # the file's own pages count here, though they cost nothing
    fresh = made()
    assert most_allocated(lambda: fresh.load(tmp_path / "file")) <= mapped + state + one
    # Into one that has stepped: its state goes as the new one comes, a parameter's at a time.
    assert most_allocated(lambda: fresh.load(tmp_path / "file")) <= mapped + 2 * one + 1024


def test_a_refused_load_of_torchs_optimizer_changes_nothing(tmp_path: Path) -> None:
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, scheduler, 2)
    steprule.save_training(
        tmp_path / "run", model=model, optimizer=optimizer, schedulers=scheduler, random_state=True
    )
    other = net(1)
    grouped = torch.optim.SGD([{"params": [p]} for p in other.parameters()], lr=0.5)
    new = torch.optim.lr_scheduler.StepLR(grouped, 1)
    before, generators = state_of(other, grouped, new), torch.get_rng_state()
    with pytest.raises(ValueError, match="different number of parameter groups"):
        steprule.load_training(
            tmp_path / "run", model=other, optimizer=grouped, schedulers=new, random_state=True
        )
    assert same(state_of(other, grouped, new), before)
    assert torch.equal(torch.get_rng_state(), generators)


class Refused(torch.optim.SGD):
    def load_state_dict(self, state_dict: Any) -> None:
        super().load_state_dict(state_dict)
        raise RuntimeError("too late")


def test_an_optimizer_that_refuses_late_is_put_back(tmp_path: Path) -> None:
    one = torch.optim.SGD(net().parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(one, 1)
    steprule.save_training(tmp_path / "run", optimizer=one, schedulers=scheduler, random_state=True)
    model = net(1)
    optimizer = Refused(model.parameters(), lr=0.7, momentum=0.9)
    new = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    train(model, optimizer, new, 2)
    before = state_of(optimizer, new)
    with pytest.raises(RuntimeError, match="too late"):
        steprule.load_training(tmp_path / "run", optimizer=optimizer, schedulers=new)
    assert same(state_of(optimizer, new), before)


def test_torchs_optimizers_are_loaded_by_name_and_keep_what_is_asked(tmp_path: Path) -> None:
    needs_torch("2.6", "its optimizers know no names")
    model = nn.Linear(3, 3, bias=False)
    other = nn.Linear(3, 3, bias=False)
    named = [("a", model.weight), ("b", other.weight)]
    one = torch.optim.SGD(named, lr=0.1, momentum=0.9)
    for i, (_, param) in enumerate(named):
        param.grad = torch.full_like(param, float(i))
    one.step()
    steprule.save_training(tmp_path / "run", optimizer=[one])
    turned = torch.optim.SGD(list(reversed(named)), lr=0.7, momentum=0.9)
    steprule.load_training(tmp_path / "run", optimizer=[turned], keep=("lr",))
    for _, param in named:
        assert torch.equal(
            turned.state[param]["momentum_buffer"], one.state[param]["momentum_buffer"]
        )
    assert turned.param_groups[0]["lr"] == 0.7
    renamed = torch.optim.SGD([("c", model.weight), ("b", other.weight)], lr=0.7)
    steprule.load_training(tmp_path / "run", optimizer=[renamed], rename={"a": "c"})
    with pytest.raises(ValueError, match="'c' of the optimizer"):
        steprule.load_training(tmp_path / "run", optimizer=[renamed])
    adam = torch.optim.Adam(named)
    with pytest.raises(
        ValueError, match=r"optimizer\.0: the state dict is one of SGD, not of Adam"
    ):
        steprule.load_training(tmp_path / "run", optimizer=[adam])


def test_names_that_meet_are_refused(tmp_path: Path) -> None:
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    steprule.save_training(tmp_path / "run", model=model)
    lone = nn.ModuleDict({"b": nn.Linear(2, 2)})
    before = state_of(lone)
    for rename, error, message in (
        (lambda name: name.replace("a.", "b."), ValueError, "several saved entries of model"),
        (lambda name: None, TypeError, "rename must return strings"),
        (5, TypeError, "rename must be a dict"),
    ):
        with pytest.raises(error, match=message):
            steprule.load_training(tmp_path / "run", model=lone, rename=rename)  # type: ignore[arg-type]
    assert same(state_of(lone), before)


def test_a_model_is_renamed_where_its_optimizer_has_no_names(tmp_path: Path) -> None:
    model = net()
    unnamed = steprule.SGD(model.parameters(), lr=0.1, momentum=0.9)
    train(model, unnamed, StepLR(unnamed, 9), 2)
    steprule.save_training(tmp_path / "run", model=model, optimizer=unnamed)
    renamed = nn.ModuleDict({"body": net(1)})
    fresh = steprule.SGD(renamed.parameters(), lr=0.7)
    steprule.load_training(
        tmp_path / "run",
        model=renamed,
        optimizer=fresh,
        rename={name: f"body.{name}" for name in model.state_dict()},
    )
    assert same(fresh.state_dict(), unnamed.state_dict())


def test_among_averages_nothing_is_loaded_and_the_model_is_saved_alone(tmp_path: Path) -> None:
    model = net()
    optimizer = steprule.SGD(model.named_parameters(), lr=0.1, ema_decay=0.5)
    train(model, optimizer, StepLR(optimizer, 9), 3)
    steprule.save_training(tmp_path / "run", model=model, optimizer=optimizer)
    with optimizer.averaged():
        with pytest.raises(RuntimeError, match="load after the block"):
            steprule.load_training(tmp_path / "run", model=model, optimizer=optimizer)
        with pytest.raises(RuntimeError, match="save the model alone"):
            steprule.save_training(tmp_path / "both", model=model, optimizer=optimizer)
        steprule.save_training(tmp_path / "averages", model=model)
        averages = state_of(model)
    other = net(1)
    steprule.load_training(tmp_path / "averages", model=other)
    assert same(state_of(other), averages)


class Extra(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = torch.ones(3)

    def get_extra_state(self) -> Any:
        return {"kept": self.kept}

    def set_extra_state(self, state: Any) -> None:
        self.kept = state["kept"]


def test_nothing_lives_on_in_the_file(tmp_path: Path) -> None:
    model = Extra()
    shared = torch.ones(5)
    steprule.save_training(tmp_path / "run", model=model, extra=[shared, shared])
    other = Extra()
    found = steprule.load_training(tmp_path / "run", model=other)
    assert found.extra[0] is found.extra[1]
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "run") not in maps.read_text(encoding="utf-8")
    found.extra[0].add_(1)
    assert torch.equal(other.kept, torch.ones(3))


def test_modules_that_rename_what_they_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    with pytest.warns(FutureWarning):
        old = torch.nn.utils.weight_norm(nn.Linear(3, 2))
    steprule.save_training(tmp_path / "run", model=old)
    new = torch.nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    steprule.load_training(tmp_path / "run", model=new)
    torch.testing.assert_close(new.weight, old.weight)
    steprule.save_training(tmp_path / "plain", model=nn.Linear(3, 2))
    before = state_of(new)
    with pytest.raises(RuntimeError, match="Missing key"):
        steprule.load_training(tmp_path / "plain", model=new)
    assert same(state_of(new), before)
    lazy = nn.LazyLinear(2)
    steprule.load_training(tmp_path / "plain", model=lazy)
    assert lazy.weight.shape == (2, 3)
