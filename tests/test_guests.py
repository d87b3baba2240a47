"""Scripts and libraries around the optimizer: what they do to it, and expect of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import steprule
from steprule.engines.kernel_cache import cache as kernel_cache


def trained(optimizer: Any, param: nn.Parameter, steps: int = 1) -> None:
    for _ in range(steps):
        param.grad = torch.ones_like(param)
        optimizer.step()


def test_a_wrapper_may_keep_keys_of_its_own() -> None:
    """SAM as everyone copies it: its options beside those of the optimizer within."""
    param = nn.Parameter(torch.ones(3))
    groups = [{"params": [param], "rho": 0.05, "adaptive": False, "lr": 0.1, "alpha": 1.0}]
    optimizer = steprule.SGD(groups, lr=0.1, momentum=0.9)
    assert optimizer.param_groups[0]["rho"] == 0.05


def test_a_wrapper_need_not_call_init() -> None:
    """Libraries' wrappers derive from the class, keep an optimizer and pass all on to it."""

    class Wrapper(steprule.Optimizer):
        def __init__(self, optimizer: steprule.Optimizer) -> None:
            self.optimizer = optimizer

        @property
        def param_groups(self) -> Any:  # type: ignore[override]
            return self.optimizer.param_groups

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            return self.optimizer.step(closure)

    param = nn.Parameter(torch.ones(3))
    wrapper = Wrapper(steprule.SGD([param], lr=0.25))
    trained(wrapper, param, steps=2)
    assert param.tolist() == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("cls", "name", "meant"),
    [
        (steprule.SGD, "clasic_momentum", "classic_momentum"),
        (steprule.Adam, "decouple_weight_decay", "decoupled_weight_decay"),
        (steprule.Adam, "bates", "betas"),
        (steprule.Adam, "esp", "eps"),
        (steprule.Adam, "rl", "lr"),
        (steprule.Adam, "weight_decay_", "weight_decay"),
    ],
)
def test_a_misspelling_is_told_from_a_key_of_ones_own(cls: Any, name: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"{name!r}: did you mean {meant!r}"):
        cls([{"params": [nn.Parameter(torch.ones(1))], name: 0.1}])


@pytest.mark.parametrize("foreach", [True, False])
def test_torchs_flags_in_a_checkpoint_do_not_undo_the_engine_chosen_here(foreach: bool) -> None:
    param = nn.Parameter(torch.ones(3))
    saved = torch.optim.AdamW([param], foreach=foreach).state_dict()
    optimizer = steprule.AdamW([param], engine="fused")
    optimizer.load_state_dict(saved)
    trained(optimizer, param)
    assert optimizer.explain().rows[0].engine == "fused"


@pytest.mark.filterwarnings("ignore:Guards may run slower")  # on Python 3.13.0
def test_a_compiled_step_is_one_break_and_never_recompiled() -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.Adam([param])
    frames = []

    def backend(graph: Any, _inputs: Any) -> Any:
        frames.append(graph)
        return graph.forward

    def step(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        optimizer.step()
        return y * 2

    param.grad = torch.ones(3)
    compiled = torch.compile(step, backend=backend)
    for _ in range(4):
        compiled(torch.ones(2))
    assert len(frames) <= 2
    assert optimizer.state[param]["step"] == 4
    torch._dynamo.reset()


def test_an_optimizer_without_a_rule_has_options_of_its_own() -> None:
    class Own(steprule.Optimizer):
        def step(self, closure: Any = None) -> None:
            pass

    defaults = {"lr": None, "eps": (1e-30, 1e-3), "momentum": True, "weight_decay": None}
    assert Own([nn.Parameter(torch.ones(1))], defaults).param_groups[0]["lr"] is None


def test_a_damaged_kernel_file_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    source = "def f(_address, _first, _last):\n    return 0\n"
    names, folder = ("f",), tmp_path / "steprule"
    kernel_cache._load_or_compile(source, names, "test")
    (file,) = folder.glob("*.kernel")
    whole = file.read_bytes()
    file.write_bytes(bytes(range(128, 256)) * 30)
    kernel_cache._load_or_compile(source, names, "test")
    assert file.read_bytes()[:64] == whole[:64]


def test_a_kernel_that_cannot_be_compiled_leaves_the_work_to_foreach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise OSError("no compiler today")

    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kernel_cache, "_compile", fail)
    kernel_cache._library.cache_clear()
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.Adamax([param], lr=0.1)
    trained(optimizer, param)
    row = optimizer.explain().rows[0]
    assert row.engine == "foreach"
    assert "no compiler today" in row.reason
    torch.testing.assert_close(param.detach(), torch.full((3,), 0.9))


@pytest.mark.parametrize("also", ["init_state", "explain"])
def test_what_was_never_updated_is_saved_as_never_updated(also: str) -> None:
    """Dampening leaves out the first step, which only the missing buffer tells."""
    results = []
    for prepares in (False, True):
        param = nn.Parameter(torch.zeros(2))
        made = [steprule.SGD([param], lr=1.0, momentum=0.9, dampening=0.5) for _ in range(2)]
        if prepares:
            param.grad = torch.ones(2)
            getattr(made[0], also)()
            made[1].load_state_dict(made[0].state_dict())
        trained(made[1], param, steps=2)
        results.append(param.detach())
    assert torch.equal(*results)


def test_looking_changes_nothing() -> None:
    param = nn.Parameter(torch.ones(2))
    optimizer = steprule.Adam([param])
    param.grad = torch.ones(2)
    optimizer.explain()
    assert not optimizer.state
    assert optimizer.state_dict()["state"] == {}


@pytest.mark.parametrize(
    ("lr", "error", "message"),
    [
        (None, TypeError, "lr of group 0 must be a number, got NoneType"),
        (torch.ones(2), ValueError, "Tensor lr of group 0 must be 1-element"),
    ],
)
def test_an_lr_spoilt_between_steps_is_refused(lr: Any, error: Any, message: str) -> None:
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.Adam([param])
    trained(optimizer, param)
    before = param.detach().clone()
    optimizer.param_groups[0]["lr"] = lr
    with pytest.raises(error, match=message):
        trained(optimizer, param)
    assert torch.equal(param, before)


def test_set_learning_rate_fills_a_tensor_that_a_graph_may_have_captured() -> None:
    lr = torch.tensor(0.1)
    optimizer = steprule.Adam([nn.Parameter(torch.ones(1))], lr=lr)
    steprule.set_learning_rate(optimizer, 0.5)
    assert optimizer.param_groups[0]["lr"] is lr
    assert float(lr) == 0.5


def test_the_profiler_sees_step_and_zero_grad() -> None:
    param = nn.Parameter(torch.ones(1))
    optimizer = steprule.Adam([param])
    with torch.profiler.profile() as profile:
        optimizer.zero_grad()
        trained(optimizer, param)
    names = {event.key for event in profile.key_averages()}
    assert {"Optimizer.zero_grad#Adam.zero_grad", "Optimizer.step#Adam.step"} <= names


def test_an_engine_asked_for_by_name_that_cannot_be_given_is_said_once(
    recwarn: pytest.WarningsRecorder,
) -> None:
    param = nn.Parameter(torch.ones(4, 4)[:, :2])
    optimizer = steprule.Adam([("w", param)], engine="fused")
    trained(optimizer, param, steps=2)
    (warning,) = recwarn.list
    assert "w runs on engine 'foreach': the parameter is a strided view" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize(
    "spoilt",
    [
        {"state": [1], "param_groups": [{"params": [0]}]},
        {"state": {}, "param_groups": None},
        {"state": {}, "param_groups": [1]},
        {"state": {}, "param_groups": [{"lr": 1.0}]},
        {"state": {0: 5}, "param_groups": [{"params": [0]}]},
    ],
)
def test_a_malformed_state_dict_is_refused(spoilt: Any) -> None:
    optimizer = steprule.Adam([nn.Parameter(torch.ones(1))])
    with pytest.raises(TypeError, match="state"):
        optimizer.load_state_dict(spoilt)
    assert not optimizer.state


@steprule.rule
def keeps_old(param, grad, old, *, lr):  # type: ignore[no-untyped-def]
    return param - lr * grad, param


@steprule.rule
def shifts(param, grad, a, b, *, lr):  # type: ignore[no-untyped-def]
    return param - lr * b, grad, a


@pytest.mark.parametrize("rule", [keeps_old, shifts])
def test_a_slot_may_take_what_another_held(rule: Any) -> None:
    cls, results = steprule.make_optimizer(rule, lr=0.1), []
    for engine in ("fused", "foreach", "eager"):
        param = nn.Parameter(torch.ones(3))
        optimizer = cls(params=[param], engine=engine)
        for i in range(4):
            param.grad = torch.full((3,), float(i + 1))
            optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    for other in results[1:]:
        torch.testing.assert_close(results[0], other)


@pytest.mark.parametrize("engine", ["fused", "foreach", "eager"])
def test_momentum_may_come_and_change_later(engine: str) -> None:
    results = []
    for cls, how in ((steprule.SGD, {"engine": engine}), (torch.optim.SGD, {})):
        param = nn.Parameter(torch.zeros(1))
        optimizer = cls([param], lr=1.0, **how)
        for momentum in (0.0, 0.0, 0.9, 0.9, 0.5, 0.9):
            optimizer.param_groups[0]["momentum"] = momentum
            trained(optimizer, param)
        results.append(param.detach())
    torch.testing.assert_close(*results)


def test_betas_in_a_list_may_be_changed_in_place() -> None:
    results = []
    for cls in (steprule.Adam, torch.optim.Adam):
        param = nn.Parameter(torch.zeros(1))
        optimizer = cls([param], lr=1.0)
        betas = [0.9, 0.999]
        optimizer.param_groups[0]["betas"] = betas
        for beta in (0.9, 0.9, 0.1):
            betas[0] = beta
            trained(optimizer, param)
        results.append(param.detach())
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("what", ["param", "state"])
def test_swapped_tensors_are_seen(what: str) -> None:
    """torch.utils.swap_tensors leaves the object and changes what is in it."""
    results = []
    for cls in (steprule.Adam, torch.optim.Adam):
        param = nn.Parameter(torch.zeros(3))
        optimizer = cls([param], lr=0.1)
        trained(optimizer, param, steps=3)
        if what == "param":
            param.grad = None
            torch.utils.swap_tensors(param, nn.Parameter(torch.ones(3)))
        else:
            torch.utils.swap_tensors(optimizer.state[param]["exp_avg"], torch.full((3,), 5.0))
        trained(optimizer, param, steps=3)
        results.append(param.detach())
    torch.testing.assert_close(*results)


def test_a_step_refused_half_way_does_not_lose_versions() -> None:
    fast, loose = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(4, 4)[:, :2])
    optimizer = steprule.SGD([fast, loose], lr=0.1)
    for _ in range(3):
        fast.grad, loose.grad = torch.ones(3), torch.ones(4, 2)
        optimizer.step()
    loose.data = torch.ones(3, 3)[:, :2]
    with pytest.raises(RuntimeError, match="shape"):
        optimizer.step()
    fast.grad, loose.grad = torch.ones(5)[2:], None
    product = (fast * fast).sum()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.backward()


def test_lazy_conjugate_data_is_told_from_what_it_is_a_view_of() -> None:
    param = nn.Parameter(torch.tensor([2.0 + 3.0j]))
    optimizer = steprule.SGD([param], lr=1.0)
    for _ in range(3):
        param.grad = torch.tensor([1.0 + 1.0j])
        optimizer.step()
    param.data = param.data.conj()
    before = param.detach().clone()
    param.grad = torch.tensor([1.0 + 1.0j])
    with pytest.raises(RuntimeError, match="conj"):
        optimizer.step()
    assert torch.equal(param.detach(), before)
