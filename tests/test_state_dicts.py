"""What loading a state dict brings back, and what it leaves: beside torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import Case, gradients, make_params, needs_torchs, rule_optimizers, run

import steprule
from steprule import lr_scheduler
from steprule.rules import OPTIMIZERS
from steprule.schedules import linear

NAMES = rule_optimizers()
BOTH = [steprule, torch.optim]


@pytest.mark.parametrize("package", BOTH)
@pytest.mark.parametrize("schedulers", [lr_scheduler, torch.optim.lr_scheduler])
def test_a_learning_rate_search_leaves_nothing_behind(package: Any, schedulers: Any) -> None:
    """The scheduler's keys go with it, so that the next one begins at the lr that was saved."""
    optimizer = package.SGD(make_params("SGD"), lr=0.01, momentum=0.9)
    before = copy.deepcopy(optimizer.state_dict())
    schedulers.OneCycleLR(optimizer, 10.0, total_steps=9)
    optimizer.load_state_dict(before)
    assert optimizer.state_dict()["param_groups"] == before["param_groups"]
    schedulers.LambdaLR(optimizer, lambda epoch: 1.0)
    assert optimizer.param_groups[0]["lr"] == 0.01


@pytest.mark.parametrize("name", sorted(cls.__name__ for cls in OPTIMIZERS.values()))
def test_only_options_survive_a_state_dict_that_lacks_them(name: str) -> None:
    optimizer = OPTIMIZERS[name.lower()](make_params("Muon" if name == "Muon" else "SGD"))
    group = optimizer.param_groups[0]
    options = {**optimizer.extras, **group}
    group.update(options, initial_lr=5.0, mine="left behind")
    params = list(range(len(group["params"])))
    optimizer.load_state_dict({"state": {}, "param_groups": [{"params": params}]})
    assert group == {**options, **optimizer.fixed}


def test_names_and_schedules_survive_a_state_dict_that_lacks_them() -> None:
    named = [(f"w{i}", param) for i, param in enumerate(make_params("SGD"))]
    optimizer = steprule.SGD(named, lr=linear(1.0, 0.0, steps=4))
    theirs = torch.optim.SGD(make_params("SGD"), lr=0.5)
    optimizer.load_state_dict(theirs.state_dict())
    assert optimizer.param_groups[0]["param_names"][0] == "w0"
    assert optimizer.param_groups[0]["lr"] == 1.0
    for _ in gradients([param for _, param in named], 2):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


def repaired(base: Any) -> Any:
    """A subclass that sets and repairs on load and on unpickling, as timm's optimizers do."""

    class Repaired(base):  # type: ignore[misc]
        calls = 0

        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            Repaired.calls += 1
            for group in self.param_groups:
                group.setdefault("caution", False)
            for entry in self.state.values():
                entry["step"] = torch.as_tensor(float(entry["step"]) + 100)

    return Repaired


@pytest.mark.parametrize("package", BOTH)
def test_setstate_is_called_at_the_end_of_a_load(package: Any) -> None:
    cls = repaired(package.Adam)
    params, optimizer = run(cls, Case("Adam", {}), steps=2)
    seen = []
    optimizer.register_load_state_dict_post_hook(lambda o: seen.append(cls.calls))
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert seen == [1]
    assert optimizer.param_groups[0]["caution"] is False
    assert optimizer.state[params[0]]["step"] == 102
    for _ in gradients(params, 1):
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 103


@pytest.mark.parametrize("name", sorted(cls.__name__ for cls in OPTIMIZERS.values()))
def test_a_load_keeps_hooks_and_objects(name: str) -> None:
    cls = OPTIMIZERS[name.lower()]
    optimizer = cls(make_params("Muon" if name == "Muon" else "SGD"))
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("step"))
    optimizer._is_stepping = True  # loaded from within a step, by a hook
    groups, group, state = optimizer.param_groups, optimizer.param_groups[0], optimizer.state
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert optimizer.param_groups is groups
    assert optimizer.param_groups[0] is group
    assert optimizer.state is state
    assert optimizer._is_stepping
    assert len(optimizer._optimizer_step_post_hooks) == 1


def test_a_load_that_setstate_refuses_changes_nothing() -> None:
    class Strict(steprule.Adam):
        def __setstate__(self, state: dict[str, Any]) -> None:
            super().__setstate__(state)
            self.param_groups = [{**group, "mine": 1} for group in self.param_groups]
            raise ValueError("too old")

    params, optimizer = run(Strict, Case("Adam", {}), steps=2)
    groups, state = optimizer.param_groups, optimizer.state
    before = copy.deepcopy(optimizer.state_dict())
    other = run(steprule.Adam, Case("Adam", {"lr": 0.5}), steps=3, seed=5)[1].state_dict()
    with pytest.raises(ValueError, match="too old"):
        optimizer.load_state_dict(other)
    assert (optimizer.param_groups, optimizer.state) == (groups, state)
    torch.testing.assert_close(optimizer.state_dict(), before, rtol=0, atol=0)
    for _ in gradients(params, 1):
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 3


ODD_ENTRIES: list[tuple[Any, Any]] = [
    ("global", {"count": 3}),
    ("count", 7),
    ("buffer", torch.ones(2)),
    (5.5, [torch.ones(2), None]),
    (("a", 1), "text"),
    (None, None),
]


@pytest.mark.parametrize("entry", ODD_ENTRIES, ids=lambda entry: str(entry[0]))
@pytest.mark.parametrize("name", sorted(cls.__name__ for cls in OPTIMIZERS.values()))
def test_entries_that_belong_to_no_parameter_go_through(name: str, entry: Any) -> None:
    """Users keep things of their own in the state; torch saves and loads them as they are."""
    key, value = entry
    made = []
    for package in (torch.optim, steprule):
        optimizer = needs_torchs(name, package)(make_params("Muon" if name == "Muon" else "SGD"))
        optimizer.state[key] = value
        saved = copy.deepcopy(optimizer.state_dict())
        optimizer.state.clear()
        optimizer.load_state_dict(saved)
        copied = copy.deepcopy(optimizer)
        made.append((saved["state"], dict(optimizer.state), dict(copied.state)))
        if package is steprule:
            optimizer.to("cpu").explain()
    assert str(made[0]) == str(made[1])


def test_what_is_no_dict_is_saved_though_a_parameter_has_it() -> None:
    for cls in OPTIMIZERS.values():
        optimizer = cls(make_params("Muon" if cls.only_2d else "SGD"))
        optimizer.state[optimizer.param_groups[0]["params"][0]] = 5
        assert optimizer.state_dict()["state"][0] == 5


class Odd:
    """A value that refuses to be compared, as arrays and frames do."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("ambiguous")

    __hash__ = object.__hash__

    def __deepcopy__(self, _: Any) -> Odd:
        return self

    def __repr__(self) -> str:
        return "odd"


@pytest.mark.parametrize("value", [Odd(), torch.ones(3), [torch.ones(2)], print])
@pytest.mark.parametrize("name", NAMES)
def test_groups_may_hold_what_cannot_be_compared(name: str, value: Any) -> None:
    made = []
    for package in (torch.optim, steprule):
        params = make_params(name)
        groups = [{"params": params[:1], "zzz": value}, {"params": params[1:], "aaa": value}]
        optimizer = needs_torchs(name, package)(groups, lr=0.1)
        for _ in gradients(params, 3):
            optimizer.step()
        saved = optimizer.state_dict()
        optimizer.load_state_dict(saved)
        optimizer.add_param_group({"params": [torch.ones(2, 2, requires_grad=True)]})
        assert optimizer.param_groups[0]["zzz"] is value or isinstance(value, (Tensors, list))
        made.append([group.keys() - {"decoupled_weight_decay"} for group in saved["param_groups"]])
    assert made[0] == made[1]


Tensors = torch.Tensor


@pytest.mark.parametrize("name", sorted(cls.__name__ for cls in OPTIMIZERS.values()))
def test_the_text_is_torchs(name: str) -> None:
    theirs = needs_torchs(name)(make_params("Muon"))
    ours = OPTIMIZERS[name.lower()](make_params("Muon"))
    if name != "LBFGS":
        for optimizer in (theirs, ours):
            optimizer.add_param_group({"params": [torch.ones(2, 2, requires_grad=True)], "lr": 0.5})
    else:  # torch lists this one from 2.14 on
        theirs.param_groups[0].pop("maximize", None)
    for group in theirs.param_groups:  # options that torch's class has not
        group.update(
            {key: ours.param_groups[0][key] for key in ours.defaults.keys() - group.keys()}
        )
    assert repr(ours) == repr(theirs)


class Wrapper(steprule.Optimizer):
    """Lookahead and its like: never initialised, it lives on the optimizer within."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.defaults = inner.defaults

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_a_wrapper_that_was_never_initialised() -> None:
    params = make_params("SGD")
    wrapper = Wrapper(steprule.SGD(params, lr=0.5))
    for _ in gradients(params, 2):
        wrapper.step()
    with torch.profiler.profile() as profile:
        wrapper.zero_grad()
    assert "Optimizer.zero_grad#Wrapper.zero_grad" in {e.key for e in profile.key_averages()}
    assert all(param.grad is None for param in params)
    assert "lr: 0.5" in repr(wrapper)


class WorkSplit(steprule.Optimizer):
    """A wrapper that is initialised, and shares the groups of the optimizer within."""

    def __init__(self, inner: Any) -> None:
        super().__init__([torch.ones(1, requires_grad=True)], {"lr": 1.0})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_schedules_move_once_a_step_within_a_wrapper() -> None:
    params = make_params("SGD")
    optimizer = WorkSplit(steprule.SGD(params, lr=linear(1.0, 0.0, steps=4)))
    for _ in gradients(params, 2):
        optimizer.step()
    assert optimizer.param_groups[0]["lr"] == 0.5


GRADIENTS = {
    "plain": lambda: torch.ones(3, 4),
    "strided": lambda: torch.ones(4, 3).t(),
    "sparse": lambda: torch.ones(3, 4).to_sparse(),
    "requiring": lambda: torch.ones(3, 4, requires_grad=True),
    "computed": lambda: torch.ones(3, 4, requires_grad=True) * 2,
    "meta": lambda: torch.ones(3, 4, device="meta"),
}


@pytest.mark.parametrize("foreach", [None, True, False])
@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", GRADIENTS)
def test_zero_grad_on_gradients_of_any_kind(kind: str, set_to_none: bool, foreach: Any) -> None:
    made = []
    for package in (torch.optim, steprule):
        param = torch.ones(3, 4, device="meta" if kind == "meta" else "cpu", requires_grad=True)
        param.grad = GRADIENTS[kind]()
        grad = param.grad
        package.Adam([param], foreach=foreach).zero_grad(set_to_none=set_to_none)
        assert set_to_none or param.grad is grad
        assert set_to_none or not grad.requires_grad
        made.append(None if param.grad is None else str(param.grad))
    assert made[0] == made[1]
