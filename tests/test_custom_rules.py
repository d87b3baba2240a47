"""A rule of the user's own gets what the built-in ones have."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from helpers import ENGINES

import steprule
from steprule.ops import maximum, sign, where
from steprule.schedules import linear


@steprule.rule(exp_avg=steprule.Slot(full_precision=True))
def lion(
    param: Any, grad: Any, exp_avg: Any, *, lr: Any, beta1: Any, beta2: Any, damped: bool
) -> Any:
    """Chen et al. 2023."""
    update = sign(beta1 * exp_avg + (1 - beta1) * grad)
    if damped:
        update = 0.5 * update
    return param - lr * update, beta2 * exp_avg + (1 - beta2) * grad


Lion = steprule.make_optimizer(lion, lr=1e-2, betas=(0.9, 0.99), damped=False)


def by_hand(steps: int, decay: float = 0.0) -> torch.Tensor:
    param, exp_avg = torch.ones(5), torch.zeros(5)
    for i in range(steps):
        grad = torch.arange(5.0) - 2 + i
        param = param * (1 - 1e-2 * decay)
        param = param - 1e-2 * torch.sign(0.9 * exp_avg + 0.1 * grad)
        exp_avg = 0.99 * exp_avg + 0.01 * grad
    return param


def train(steps: int, **options: Any) -> tuple[torch.Tensor, Any]:
    param = torch.ones(5, requires_grad=True)
    optimizer = Lion([param], **options)
    for i in range(steps):
        param.grad = torch.arange(5.0) - 2 + i
        optimizer.step()
    return param, optimizer


@pytest.mark.parametrize("engine", ENGINES)
def test_runs_on_every_engine(engine: str) -> None:
    param, optimizer = train(6, engine=engine)
    torch.testing.assert_close(param.detach(), by_hand(6))
    assert optimizer.explain().rows[0].engine == engine


def test_has_groups_decay_state_dicts_schedules_and_checks() -> None:
    param, _ = train(6, weight_decay=0.1, decoupled_weight_decay=True)
    torch.testing.assert_close(param.detach(), by_hand(6, decay=0.1))
    _, optimizer = train(2, lr=linear(0.1, 0.0, steps=10))
    assert optimizer.param_groups[0]["lr"] == linear(0.1, 0.0, steps=10)(2)
    other = Lion([torch.ones(5, requires_grad=True)])
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert set(next(iter(other.state.values()))) == {"exp_avg"}
    with pytest.raises(ValueError, match=r"betas\[0\] must be in \[0, 1\)"):
        Lion([torch.ones(5, requires_grad=True)], betas=(1.0, 0.9))
    with pytest.raises(TypeError, match="momentum"):
        Lion([torch.ones(5, requires_grad=True)], momentum=0.9)
    with pytest.raises(ValueError, match="did you mean 'damped'"):
        Lion([{"params": [torch.ones(5, requires_grad=True)], "dampd": True}])


def test_pickles_by_its_module_level_name() -> None:
    _, optimizer = train(2)
    twin = pickle.loads(pickle.dumps(optimizer))
    assert type(twin) is Lion
    assert repr(twin) == repr(optimizer)


def test_a_class_of_ones_own_reads_as_well() -> None:
    class MyLion(steprule.Optimizer):
        rule = lion

        def __init__(self, params: Any, lr: float = 1e-2) -> None:
            super().__init__(params, {"lr": lr, "betas": (0.9, 0.99), "damped": False})

    param = torch.ones(5, requires_grad=True)
    optimizer = MyLion([param])
    for i in range(6):
        param.grad = torch.arange(5.0) - 2 + i
        optimizer.step()
    torch.testing.assert_close(param.detach(), by_hand(6))


def test_what_is_no_rule_or_no_option_is_refused() -> None:
    with pytest.raises(TypeError, match="decorate"):
        steprule.make_optimizer(lambda param, grad: param)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no option momentum"):
        steprule.make_optimizer(lion, momentum=0.9)
    needs_lr = steprule.make_optimizer(lion, betas=(0.9, 0.99), damped=False)
    with pytest.raises(TypeError, match="lr"):
        needs_lr([torch.ones(5, requires_grad=True)])


def counted(param: Any, grad: Any, m: Any, *, lr: Any, step: Any) -> Any:
    return param - lr * (grad > 0) * (step > 2), (grad > 0) * m + (step > 1) + 1


def compared(param: Any, grad: Any, m: Any, *, lr: Any) -> Any:
    return param - lr * where((grad > 0) == (m > 0), 1.0, -1.0) * grad, grad > 0


def chosen(param: Any, grad: Any, m: Any, *, lr: Any) -> Any:
    return param - where(grad > 0, lr, grad), where(m > 0.5, grad > 0, maximum(grad > 1, m) + lr)


def mixed(param: Any, grad: Any, m: Any, *, lr: Any) -> Any:
    both = ((grad > 0) & (lr > 0.05)) | ((lr > 5) & (grad < 0)) & True
    return param - lr * where(both, param > 0, 0.5), sign(grad > 0) + where(
        grad > 1, m > 0, grad < 0
    )


def by_numbers(param: Any, grad: Any, m: Any, *, lr: Any) -> Any:
    """A number as a condition is true unless it is 0."""
    return param - lr * where(grad, 1, 2), where(lr, where(m, grad, 0.25), m)


@pytest.mark.parametrize("function", [counted, compared, chosen, mixed, by_numbers])
def test_truth_values_count_as_numbers_on_every_engine(function: Any) -> None:
    cls = steprule.make_optimizer(steprule.rule(function), lr=0.1)
    found = []
    for engine in ENGINES:
        param = torch.linspace(-1, 1, 9).requires_grad_()
        optimizer = cls([param], engine=engine)
        for i in range(4):
            param.grad = torch.linspace(-2, 3, 9) * (-1) ** i
            optimizer.step()
        assert optimizer.explain().rows[0].engine == engine
        found.append((param.detach(), optimizer.state[param]["m"]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


@pytest.mark.parametrize("engine", ENGINES)
def test_scalar_slots_may_be_constants_and_have_any_name(engine: str) -> None:
    @steprule.rule(group=steprule.Slot(shape="scalar"), c=steprule.Slot(shape="scalar"))
    def named(param: Any, grad: Any, group: Any, c: Any, *, lr: Any) -> Any:
        return param - grad, group + 1, 3.0

    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.make_optimizer(named, lr=0.1)([param], engine=engine)
    for _ in range(3):
        param.grad = torch.ones(2)
        optimizer.step()
    assert optimizer.explain().rows[0].engine == engine
    assert [optimizer.state[param][name].item() for name in ("group", "c")] == [3.0, 3.0]


@pytest.mark.parametrize("kind", [int, lambda x: torch.tensor(int(x)), torch.tensor])
@pytest.mark.parametrize("engine", ENGINES)
def test_step_counts_of_any_kind_advance(engine: str, kind: Any) -> None:
    found = []
    for convert in (kind, lambda x: torch.tensor(x)):
        param = torch.ones(2, requires_grad=True)
        optimizer = steprule.Adam([param], lr=0.1, engine=engine)
        for i in range(5):
            param.grad = torch.full((2,), float(i))
            optimizer.step()
            if i == 1:
                optimizer.state[param]["step"] = convert(2.0)
        found.append((param.detach(), float(optimizer.state[param]["step"])))
    assert found[0][1] == found[1][1] == 5.0
    assert torch.equal(found[0][0], found[1][0])


@steprule.rule(optional=("bound",))
def bounded(param: Any, grad: Any, *, lr: Any, bound: Any) -> Any:
    """A number that may be None comes as nan."""
    return param - lr * where(bound == bound, maximum(grad, -bound), grad)


def test_a_number_that_may_be_none_is_taken_as_none() -> None:
    Bounded = steprule.make_optimizer(bounded, lr=1.0, bound=None)  # noqa: N806
    param = torch.zeros(2, requires_grad=True)
    optimizer = Bounded([param])
    param.grad = torch.tensor([-3.0, 1.0])
    optimizer.step()
    assert param.tolist() == [3.0, -1.0]
    optimizer.param_groups[0]["bound"] = 2.0
    optimizer.step()
    assert param.tolist() == [5.0, -2.0]
    with pytest.raises(TypeError, match="lr must be a number, got NoneType"):
        Bounded([param], lr=None)
