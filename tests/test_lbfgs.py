"""LBFGS: torch's numbers where torch works, and what torch refuses or gets wrong."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.quasi_newton import LBFGS, Result


def rosenbrock(x: Tensor) -> Tensor:
    return (100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2).sum()


def start(n: int = 10, dtype: torch.dtype = torch.float64) -> Parameter:
    generator = torch.Generator().manual_seed(0)
    return Parameter((torch.randn(n, generator=generator) * 0.3 + 0.8).to(dtype))


def closure_of(
    optimizer: torch.optim.Optimizer,
    loss_of: Callable[[], Tensor],
    calls: list[float] | None = None,
) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of()
        loss.backward()
        if calls is not None:
            calls.append(float(loss.detach()))
        return loss

    return closure


def run(cls: Any, param: Parameter, steps: int = 1, **options: Any) -> Any:
    optimizer = cls([param], **options)
    closure = closure_of(optimizer, lambda: rosenbrock(param))
    for _ in range(steps):
        optimizer.step(closure)
    return optimizer


# -- torch's trajectory ---------------------------------------------------------------------


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
@pytest.mark.parametrize("lr", [1, 0.1])
@pytest.mark.parametrize("history_size", [1, 5, 100])
def test_trajectory_is_torchs(line_search_fn: str | None, lr: float, history_size: int) -> None:
    """In float64: to 1e-9 over 40 iterations (rounding grows along an ill-conditioned path)."""
    options = {"lr": lr, "history_size": history_size, "line_search_fn": line_search_fn}
    options |= {"max_iter": 5, "max_eval": 60}
    ours, theirs = start(), start()
    mine = LBFGS([ours], **options)
    yours = torch.optim.LBFGS([theirs], **options)
    for _ in range(8):
        loss = mine.step(closure_of(mine, lambda: rosenbrock(ours)))
        expected = yours.step(closure_of(yours, lambda: rosenbrock(theirs)))
        torch.testing.assert_close(loss, expected, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
        for key in ("func_evals", "n_iter"):
            assert mine.state[ours][key] == yours.state[theirs][key]


def test_float32_follows_torch_to_rounding() -> None:
    ours, theirs = start(dtype=torch.float32), start(dtype=torch.float32)
    run(LBFGS, ours, steps=3, max_iter=4, line_search_fn="strong_wolfe", max_eval=40)
    run(torch.optim.LBFGS, theirs, steps=3, max_iter=4, line_search_fn="strong_wolfe", max_eval=40)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_returns_the_first_closure_value_and_evaluates_with_gradients() -> None:
    param = start()
    seen: list[float] = []
    optimizer = LBFGS([param], max_iter=3)
    with torch.no_grad():
        loss = optimizer.step(closure_of(optimizer, lambda: rosenbrock(param), seen))
    assert float(loss.detach()) == seen[0]


# -- what torch 2.13 refuses or gets wrong ----------------------------------------------------


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente", "backtracking"])
@pytest.mark.parametrize("max_eval", [1, 2, 3, 7])
def test_never_more_evaluations_than_max_eval(line_search_fn: str | None, max_eval: int) -> None:
    param = Parameter(torch.tensor([-1.2, 1.0], dtype=torch.float64))
    seen: list[float] = []
    optimizer = LBFGS(
        [param],
        max_iter=50,
        max_eval=max_eval,
        line_search_fn=line_search_fn,
        lr=3e-3,
        strict_max_eval=True,
    )
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(param), seen))
    assert len(seen) == max_eval == optimizer.result().evaluations
    assert optimizer.result().reason == "evaluations"


def test_empty_groups_are_a_no_op() -> None:
    optimizer = LBFGS([{"params": []}])
    assert float(optimizer.step(lambda: torch.tensor(3.5))) == 3.5
    assert optimizer.result().reason == "empty"
    param = start()
    mixed = LBFGS([{"params": []}, {"params": [param]}, {"params": []}], max_iter=5)
    alone = start()
    run(LBFGS, alone, max_iter=5)
    mixed.step(closure_of(mixed, lambda: rosenbrock(param)))
    assert torch.equal(param, alone)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente", "backtracking"])
def test_maximize_mirrors_minimizing(line_search_fn: str | None) -> None:
    down, up = start(), start()
    a = LBFGS([down], max_iter=8, line_search_fn=line_search_fn)
    b = LBFGS([up], max_iter=8, line_search_fn=line_search_fn, maximize=True)
    a.step(closure_of(a, lambda: rosenbrock(down)))
    b.step(closure_of(b, lambda: -rosenbrock(up)))
    assert torch.equal(down, up)
    assert b.result().loss == -a.result().loss


# -- groups, dtypes, gradients ----------------------------------------------------------------


def test_groups_with_one_lr_are_one_problem() -> None:
    whole, left, right = start(), Parameter(start().data[:4]), Parameter(start().data[4:])
    run(LBFGS, whole, max_iter=15, line_search_fn="more_thuente")
    optimizer = LBFGS(
        [{"params": [left]}, {"params": [right]}], max_iter=15, line_search_fn="more_thuente"
    )
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(torch.cat([left, right]))))
    torch.testing.assert_close(torch.cat([left, right]), whole, rtol=1e-12, atol=1e-12)


def test_lr_scales_a_groups_part_of_the_direction() -> None:
    a, b = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    optimizer = LBFGS([{"params": [a]}, {"params": [b], "lr": 0.25}], max_iter=1)
    optimizer.step(closure_of(optimizer, lambda: (a**2).sum() + (b**2).sum()))
    torch.testing.assert_close(1 - b, 0.25 * (1 - a))


def test_lrs_keep_it_a_descent_method() -> None:
    a, b = Parameter(start().data[:4]), Parameter(start().data[4:])
    optimizer = LBFGS(
        [{"params": [a]}, {"params": [b], "lr": 1e-2}],
        max_iter=1,
        max_eval=30,
        line_search_fn="more_thuente",
    )
    losses = [
        float(optimizer.step(closure_of(optimizer, lambda: rosenbrock(torch.cat([a, b])))).detach())
        for _ in range(40)
    ]
    assert all(after < before for before, after in itertools.pairwise(losses))


def test_a_group_with_lr_0_is_frozen_and_the_rest_converges() -> None:
    a, b = Parameter(torch.tensor([-1.2])), Parameter(torch.tensor([2.0]))
    optimizer = LBFGS(
        [{"params": [a]}, {"params": [b], "lr": 0.0}], max_iter=50, line_search_fn="more_thuente"
    )
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(torch.cat([a, b]))))
    assert torch.equal(b, torch.tensor([2.0]))
    assert optimizer.result().converged
    torch.testing.assert_close(a.detach(), torch.tensor([-(2.0**0.5)]), atol=1e-2, rtol=0)


@pytest.mark.parametrize("empty", [[], [Parameter(torch.empty(0))]])
def test_a_group_without_values_has_no_say_in_the_lrs(empty: list[Parameter]) -> None:
    param = Parameter(torch.tensor([3.0]))
    optimizer = LBFGS([{"params": [param], "lr": 0.0}, {"params": empty, "lr": 1.0}], max_iter=1)
    optimizer.step(closure_of(optimizer, lambda: param.sum()))
    assert param.item() == 3.0
    optimizer.param_groups[0]["lr"] = 0.25
    optimizer.step(closure_of(optimizer, lambda: param.sum()))
    assert param.item() == 2.75


def test_a_frozen_groups_gradient_does_not_shorten_the_first_step() -> None:
    free, frozen = Parameter(torch.tensor([3.0])), Parameter(torch.tensor([1e3]))
    optimizer = LBFGS(
        [{"params": [free]}, {"params": [frozen], "lr": 0.0}],
        max_iter=1,
        max_eval=5,
        line_search_fn="backtracking",
    )
    optimizer.step(closure_of(optimizer, lambda: 0.5 * free.sum() + (frozen**2).sum()))
    assert free.item() == 2.5


def test_an_lr_of_0_everywhere_moves_nothing() -> None:
    param = start()
    before = param.detach().clone()
    assert run(LBFGS, param, lr=0.0).result().reason == "change"
    assert run(LBFGS, param, lr=0.0, line_search_fn="more_thuente").result().reason == "empty"
    assert torch.equal(param, before)


def test_mixed_dtypes_complex_sparse_missing_and_noncontiguous_gradients() -> None:
    generator = torch.Generator().manual_seed(1)
    wide = Parameter(torch.randn(3, generator=generator, dtype=torch.float64))
    single = Parameter(torch.randn(4, 5, generator=generator).t())
    half = Parameter(torch.randn(3, generator=generator).half())
    compound = Parameter(torch.randn(2, generator=generator, dtype=torch.complex64))
    unused = Parameter(torch.ones(2))
    table = torch.nn.Embedding(5, 2, sparse=True)
    optimizer = LBFGS(
        [wide, single, half, compound, unused, table.weight, Parameter(torch.tensor(2.0))],
        max_iter=60,
        max_eval=120,
        line_search_fn="more_thuente",
    )
    scalar = optimizer.param_groups[0]["params"][-1]

    def loss() -> Tensor:
        rows = table(torch.tensor([1, 3, 3]))
        parts = [(wide - 1) ** 2, (single - 2) ** 2, (half.float() - 0.5) ** 2, (rows - 1) ** 2]
        return sum(part.sum() for part in parts) + (compound - 1j).abs().square().sum() + scalar**2  # type: ignore[return-value]

    optimizer.step(closure_of(optimizer, loss))
    assert optimizer.state[wide]["d"].dtype == torch.float64
    torch.testing.assert_close(wide.detach(), torch.ones(3, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(half.detach(), torch.full((3,), 0.5).half(), atol=1e-3, rtol=0)
    torch.testing.assert_close(compound.detach(), torch.full((2,), 1j), atol=1e-3, rtol=0)
    torch.testing.assert_close(table.weight.detach()[3], torch.ones(2), atol=1e-3, rtol=0)
    assert torch.equal(unused, torch.ones(2))
    assert single.stride() == (1, 5)


def test_complex_parameters_follow_torch() -> None:
    parameters = [
        Parameter(torch.tensor([0.3 + 2j, -1 + 1j], dtype=torch.complex128)) for _ in "ab"
    ]
    for cls, param in zip((LBFGS, torch.optim.LBFGS), parameters, strict=True):
        optimizer = cls([param], max_iter=6, max_eval=20, line_search_fn="strong_wolfe")
        optimizer.step(closure_of(optimizer, lambda p=param: ((p**2 - 1j).abs() ** 2).sum()))
    torch.testing.assert_close(*parameters, rtol=1e-10, atol=1e-10)


def test_a_group_added_later_starts_a_new_history() -> None:
    a, b = Parameter(torch.tensor([3.0, 1.0])), Parameter(torch.tensor([5.0]))
    optimizer = LBFGS([a], max_iter=5)
    loss = lambda: ((a - 1) ** 2).sum() + ((b - 2) ** 2).sum()  # noqa: E731
    optimizer.step(closure_of(optimizer, loss))
    optimizer.add_param_group({"params": [b]})
    for _ in range(4):
        optimizer.step(closure_of(optimizer, loss))
    torch.testing.assert_close(b.detach(), torch.tensor([2.0]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("storage", [torch.bfloat16, torch.float32, "bfloat16"])
def test_a_narrow_history_still_converges(storage: Any) -> None:
    param = start(50)
    optimizer = run(
        LBFGS,
        param,
        max_iter=200,
        max_eval=400,
        tolerance_change=0.0,
        tolerance_grad=1e-6,
        history_dtype=storage,
        line_search_fn="more_thuente",
    )
    assert optimizer.result().reason == "gradient"
    assert str(optimizer.state[param]["old_dirs"][0].dtype).endswith(str(storage).split(".")[-1])


# -- errors -----------------------------------------------------------------------------------


def test_without_a_closure_the_error_shows_one() -> None:
    with pytest.raises(TypeError, match=r"optimizer\.step\(closure\)"):
        LBFGS([start()]).step()


def test_a_closure_without_a_number_is_named() -> None:
    param = start()
    before = param.detach().clone()
    with pytest.raises(TypeError, match="return loss"):
        LBFGS([param]).step(lambda: None)
    assert torch.equal(param, before)


@pytest.mark.parametrize("value", [1, True, np.float32(1), np.array(1.0), torch.tensor([[1.0]])])
def test_a_closure_may_return_anything_that_is_a_number(value: Any) -> None:
    """As in torch, which calls ``float`` on it."""
    optimizer = LBFGS([start()], max_iter=2)
    assert optimizer.step(lambda: value) is value
    assert optimizer.result().loss == 1.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "Invalid learning rate"),
        ({"max_iter": -1}, "max_iter must be at least 0, got -1"),
        ({"max_eval": -1}, "max_eval must be at least 0"),
        ({"history_size": 0}, "history_size must be at least 1"),
        ({"tolerance_grad": float("nan")}, "tolerance_grad"),
        ({"tolerance_change": float("nan")}, "tolerance_change"),
        ({"line_search_fn": "armijo"}, "'more_thuente'"),
        ({"bounds": (2, 1)}, "lo <= hi"),
        ({"bounds": 3}, "pair"),
        ({"history_dtype": torch.float16}, "bfloat16, float32, float64"),
    ],
)
def test_options_out_of_range_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LBFGS([start()], **options)


def test_groups_may_not_differ_in_what_is_common() -> None:
    with pytest.raises(ValueError, match="max_iter must be the same in all groups"):
        LBFGS([{"params": [start()]}, {"params": [start()], "max_iter": 3}])
    optimizer = LBFGS([{"params": [start()]}, {"params": [start()]}])
    optimizer.param_groups[1]["history_size"] = 3
    with pytest.raises(ValueError, match="history_size"):
        optimizer.step(lambda: torch.tensor(0.0))


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente", "backtracking"])
@pytest.mark.parametrize("fails_at", [1, 2, 5, 9])
def test_a_closure_that_raises_changes_nothing(line_search_fn: str | None, fails_at: int) -> None:
    param, twin = start(), start()
    options = {"max_iter": 12, "history_size": 3, "line_search_fn": line_search_fn}
    optimizer, other = LBFGS([param], **options), LBFGS([twin], **options)
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(param)))
    other.step(closure_of(other, lambda: rosenbrock(twin)))
    before, state = param.detach().clone(), copy.deepcopy(optimizer.state_dict())
    calls: list[float] = []

    def failing() -> Tensor:
        if len(calls) == fails_at - 1:
            raise OSError("the data ran out")
        return closure_of(optimizer, lambda: rosenbrock(param), calls)()

    with pytest.raises(OSError, match="data ran out"):
        optimizer.step(failing)
    assert torch.equal(param, before)
    torch.testing.assert_close(optimizer.state_dict()["state"], state["state"], rtol=0, atol=0)
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(param)))
    other.step(closure_of(other, lambda: rosenbrock(twin)))
    assert torch.equal(param, twin)


# -- the rest of an optimizer -----------------------------------------------------------------


def test_result_before_the_first_step_is_an_error() -> None:
    with pytest.raises(RuntimeError, match="no result yet"):
        LBFGS([start()]).result()


def test_result_says_why_it_stopped() -> None:
    param = start()
    result = run(LBFGS, param, max_iter=3, max_eval=9).result()
    assert isinstance(result, Result)
    assert (result.reason, result.iterations, result.evaluations) == ("iterations", 3, 3)
    assert not result.converged
    result = run(LBFGS, param, max_iter=100, line_search_fn="more_thuente").result()
    assert result.converged
    assert "tolerance" in str(result)


def test_step_hooks_run_once() -> None:
    param = start()
    optimizer = LBFGS([param], max_iter=2)
    seen: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: seen.append("pre"))
    optimizer.register_step_post_hook(lambda *_: seen.append("post"))
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(param)))
    assert seen == ["pre", "post"]
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_a_torch_scheduler_drives_lr() -> None:
    param = start()
    optimizer = LBFGS([param], lr=0.5, max_iter=2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(param)))
    scheduler.step()
    optimizer.step(closure_of(optimizer, lambda: rosenbrock(param)))
    assert optimizer.state[param]["t"] == pytest.approx(0.05)


def test_the_grad_scaler_recipe_of_the_docs() -> None:
    """docs/lbfgs.md: unscale inside the closure, and retry while the scale is too large."""
    torch.manual_seed(0)
    model, x, y = torch.nn.Linear(3, 1), torch.randn(20, 3), torch.randn(20, 1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**125)
    optimizer = LBFGS(model.parameters(), max_iter=30, line_search_fn="more_thuente")

    def closure() -> Tensor:
        while True:
            optimizer.zero_grad()
            loss = torch.nn.functional.mse_loss(model(x), y) * 8
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            scale = scaler.get_scale()
            scaler.update()
            if scaler.get_scale() >= scale:  # no overflow
                return loss

    optimizer.step(closure)
    expected = torch.linalg.lstsq(torch.cat([x, torch.ones(20, 1)], 1), y).solution[:3, 0]
    torch.testing.assert_close(model.weight.detach()[0], expected, atol=1e-3, rtol=0)
    assert optimizer.result().converged
