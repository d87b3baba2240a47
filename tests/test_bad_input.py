"""Bad input is refused when it arrives, by name, and changes nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import Case, gradients, info_of, make_params, rule_optimizers, run

import steprule
import steprule as optim
from steprule.rules import OPTIMIZERS

# torch refuses a tensor lr or beta with foreach=True; ours takes them on every engine.
ACCEPTED = "as a Tensor is not supported for capturable=False and foreach=True"


def torch_error_cases() -> list[Any]:
    found = []
    for cls in OPTIMIZERS.values():
        info = info_of(cls.__name__)
        for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32) if info else []:
            if cls.rule is not None and ACCEPTED.replace(r"\[", "[") not in case.error_regex:
                desc = f"{cls.__name__}-{case.optimizer_error_input.desc}"
                found.append(pytest.param(cls, case, id=desc))
    return found


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("cls", "case"), torch_error_cases())
def test_what_torch_refuses_is_refused_alike(cls: Any, case: Any) -> None:
    given = case.optimizer_error_input
    params = given.params
    if params is None:
        params = [torch.ones(2, 2, requires_grad=True)]
    with pytest.raises(case.error_type, match=case.error_regex):
        cls(params, **given.kwargs).step()


def param() -> torch.Tensor:
    return torch.ones(2, requires_grad=True)


BAD_PARAMS = [
    ([], ValueError, "empty parameter list.*generator"),
    (iter([]), ValueError, "empty parameter list"),
    (torch.ones(2), TypeError, r"iterable of Tensors or dicts.*\[param\]"),
    ({"params": [torch.ones(2)]}, TypeError, "put a parameter group in a list"),
    (3, TypeError, "got int"),
    ([3], TypeError, "can only optimize Tensors.*index 0"),
    ([param() * 2], ValueError, "can't optimize a non-leaf Tensor: the one at index 0"),
    ([("a", param()), ("b", param() * 2)], ValueError, "non-leaf Tensor: 'b'"),
    ([{"params": {param()}}], TypeError, "ordered collections"),
    ([{"lr": 0.1}], ValueError, "needs the key 'params'"),
    ([{"params": [param()], "learning_rate": 0.1}], ValueError, "did you mean 'lr'"),
    ([{"params": [param()], "weight_decy": 0.1}], ValueError, "did you mean 'weight_decay'"),
    ([{"params": [param()], "lr": -1.0}], ValueError, "group 0: Invalid learning rate: -1.0"),
    ([{"params": [param()], "betas": 0.9}], TypeError, "betas must be 2 numbers"),
]


@pytest.mark.parametrize(("params", "error", "message"), BAD_PARAMS)
def test_bad_params(params: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.Adam(params)


BAD_OPTIONS = [
    ({"lr": float("nan")}, ValueError, "lr must be a finite number >= 0"),
    ({"lr": float("inf")}, ValueError, "lr must be a finite number >= 0"),
    ({"lr": "0.1"}, TypeError, "lr must be a number, got str '0.1'"),
    ({"lr": True}, TypeError, "lr must be a number, got bool"),
    ({"lr": None}, TypeError, "lr must be a number"),
    ({"betas": (0.9, 1.0)}, ValueError, r"betas\[1\] must be in \[0, 1\)"),
    ({"betas": (0.9,)}, TypeError, "betas must be 2 numbers"),
    ({"engine": "gpu"}, ValueError, "engine must be 'auto' or one of 'eager', 'foreach', 'fused'"),
    ({"engine": "eager", "fused": True}, ValueError, "contradicts"),
    ({"differentiable": True, "engine": "fused"}, ValueError, "differentiable=True needs"),
    ({"differentiable": True, "fused": True}, RuntimeError, "does not support `differentiable`"),
    ({"foreach": True, "fused": True}, RuntimeError, "cannot be `True` together"),
]


@pytest.mark.parametrize(("options", "error", "message"), BAD_OPTIONS)
def test_bad_options(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        optim.Adam([param()], **options)


def test_keys_of_the_users_own_are_let_through() -> None:
    own = {"name": "head", "lr_scale": 0.5, "initial_lr": 0.1, "max_momentum": 0.9}
    optimizer = optim.SGD([{"params": [param()], **own}], lr=0.1)
    assert all(optimizer.param_groups[0][k] == v for k, v in own.items())


def test_a_parameter_listed_twice_warns_and_is_updated_twice_as_in_torch() -> None:
    p = param()
    p.grad = torch.ones(2)
    with pytest.warns(UserWarning, match="duplicate parameters"):
        optimizer = optim.SGD([p, p], lr=0.1)
    optimizer.step()
    torch.testing.assert_close(p.detach(), torch.full((2,), 0.8))


def test_a_refused_group_leaves_the_optimizer_as_it_was() -> None:
    p = param()
    optimizer = optim.Adam([p])
    before = repr(optimizer)
    for bad in ({"params": [p]}, {"params": [param()], "lr": -1}, {"params": [param() * 2]}):
        with pytest.raises(ValueError):  # noqa: PT011  # the messages have tests of their own
            optimizer.add_param_group(bad)
    assert repr(optimizer) == before


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda d: d.pop("state"), TypeError, "no entry 'state'"),
        (lambda d: d["param_groups"].append({"params": []}), ValueError, "different number"),
        (lambda d: d["param_groups"][0]["params"].pop(), ValueError, "4 parameters.*5 in the opt"),
        (
            lambda d: d["state"][1].update(exp_avg=torch.zeros(9)),
            ValueError,
            r"'exp_avg' of parameter 1 of group 0 has shape \(9,\), the parameter has \(3,\)",
        ),
        (lambda d: d["param_groups"][0].update(lr=-1.0), ValueError, "group 0: Invalid learning"),
    ],
    ids=["no state", "groups", "parameters", "shape", "lr"],
)
def test_a_state_dict_that_does_not_fit_changes_nothing(
    spoil: Any, error: type[Exception], message: str
) -> None:
    _, optimizer = run(optim.Adam, Case("Adam", {}), steps=2)
    before = copy.deepcopy(optimizer.state_dict())
    bad = copy.deepcopy(before)
    spoil(bad)
    with pytest.raises(error, match=message):
        optimizer.load_state_dict(bad)
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    for key, entry in before["state"].items():
        assert all(torch.equal(after["state"][key][k], v) for k, v in entry.items())


@pytest.mark.parametrize("name", rule_optimizers())
def test_a_refused_step_changes_nothing(name: str) -> None:
    """The last parameter's gradient no longer fits: the first ones are not touched either."""
    params, optimizer = run(OPTIMIZERS[name.lower()], Case(name, {}), steps=2)
    next(gradients(params, 1))
    state = copy.deepcopy(optimizer.state_dict()["state"])
    before = [p.detach().clone() for p in params[:-1]]
    params[-1].data = torch.zeros(3, 3)
    with pytest.raises(RuntimeError, match=r"has shape \(100, 101\), the parameter has \(3, 3\)"):
        optimizer.step()
    assert all(map(torch.equal, params[:-1], before))
    for key, entry in optimizer.state_dict()["state"].items():
        assert all(torch.equal(v, state[key][k]) for k, v in entry.items())


def test_an_option_that_is_no_number_any_more_is_refused_at_the_step() -> None:
    params, optimizer = run(optim.Adam, Case("Adam", {}), steps=1)
    next(gradients(params, 1))
    optimizer.param_groups[0]["lr"] = "fast"
    with pytest.raises(TypeError, match="lr of group 0 must be a number, got str 'fast'"):
        optimizer.step()


def test_only_closures_explain_a_missing_rule() -> None:
    class Empty(optim.Optimizer):
        pass

    with pytest.raises(NotImplementedError, match="has no rule"):
        Empty(make_params("SGD"), {"lr": 0.1}).step()


@pytest.mark.parametrize("dtype", [torch.int32, torch.bool, torch.float8_e4m3fn], ids=str)
def test_a_parameter_of_a_dtype_that_no_step_can_move_is_named(dtype: torch.dtype) -> None:
    param = torch.ones(3).to(dtype)
    param.grad = torch.ones(3).to(dtype)
    optimizer = steprule.SGD([("scale", param)], lr=1.0)
    with pytest.raises(RuntimeError, match=rf"'scale' is {dtype}\. Leave it out"):
        optimizer.step()
    assert not optimizer.state
    assert param.float().tolist() == [1.0] * 3
