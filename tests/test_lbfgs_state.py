"""LBFGS's state: torch's form, both ways, and a resumed run that is the same bit for bit."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.quasi_newton import LBFGS

TORCH_KEYS = {
    "func_evals", "n_iter", "d", "t", "old_dirs", "old_stps", "ro", "H_diag", "prev_flat_grad",
    "prev_loss", "al",
}  # fmt: skip


def problem(dtypes: tuple[torch.dtype, ...] = (torch.float64,)) -> list[Parameter]:
    generator = torch.Generator().manual_seed(4)
    return [
        Parameter((torch.randn(6, generator=generator) * 0.3 + 0.8).to(dtype)) for dtype in dtypes
    ]


def stepper(optimizer: torch.optim.Optimizer, params: list[Parameter]) -> Callable[[], None]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        x = torch.cat([param.double() for param in params])
        loss = (100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2).sum()
        loss.backward()
        return loss

    return lambda: optimizer.step(closure)  # type: ignore[arg-type,return-value]


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    loaded: dict[str, Any] = torch.load(buffer, weights_only=True)
    return loaded


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente", "backtracking"])
@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize(
    ("dtypes", "storage"),
    [
        ((torch.float64,), None),
        ((torch.float32,), torch.bfloat16),
        ((torch.float32, torch.float64), None),
        ((torch.bfloat16, torch.float32), torch.bfloat16),
    ],
)
def test_a_resumed_run_is_the_same_bit_for_bit(
    line_search_fn: str | None,
    steps: int,
    dtypes: tuple[torch.dtype, ...],
    storage: torch.dtype | None,
) -> None:
    """Also when the ring has turned: its start is saved, since sums depend on their order."""
    options: dict[str, Any] = {"max_iter": 3, "history_size": 4, "history_dtype": storage}
    options |= {"line_search_fn": line_search_fn, "lr": 0.5, "tolerance_change": 0.0}
    params = problem(dtypes)
    optimizer = LBFGS(params, **options)
    step = stepper(optimizer, params)
    for _ in range(steps):
        step()
    state = saved_and_loaded(optimizer.state_dict())
    twins = copy.deepcopy(params)
    resumed = LBFGS(twins, **options)
    resumed.load_state_dict(state)
    again = stepper(resumed, twins)
    for _ in range(4):
        step()
        again()
        for param, twin in zip(params, twins, strict=True):
            assert torch.equal(param, twin)
    torch.testing.assert_close(
        optimizer.state_dict()["state"], resumed.state_dict()["state"], rtol=0, atol=0
    )


def test_the_state_has_torchs_keys_and_only_in_the_first_parameter() -> None:
    params = problem((torch.float64, torch.float64))
    optimizer = LBFGS(params, max_iter=5)
    stepper(optimizer, params)()
    assert set(optimizer.state) == {params[0]}
    assert set(optimizer.state[params[0]]) >= TORCH_KEYS


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
@pytest.mark.parametrize("direction", ["to torch", "from torch"])
def test_a_run_continues_across_classes(line_search_fn: str | None, direction: str) -> None:
    options: dict[str, Any] = {"max_iter": 4, "max_eval": 40, "history_size": 5}
    options["line_search_fn"] = line_search_fn
    classes = [LBFGS, torch.optim.LBFGS]
    first, second = classes if direction == "to torch" else classes[::-1]
    params = problem()
    optimizer = first(params, **options)
    step = stepper(optimizer, params)
    for _ in range(3):
        step()
    twins = copy.deepcopy(params)
    other = second(twins, **options)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    again = stepper(other, twins)
    for _ in range(3):
        step()
        again()
    torch.testing.assert_close(params[0], twins[0], rtol=1e-9, atol=1e-9)


def test_torch_may_carry_our_keys_along_and_hand_them_back_stale() -> None:
    options: dict[str, Any] = {"max_iter": 4, "max_eval": 40, "history_size": 3}
    a, b, c = problem(), problem(), problem()
    ours = LBFGS(a, **options)
    stepper(ours, a)()
    theirs = torch.optim.LBFGS(b, **options)
    theirs.load_state_dict(ours.state_dict())
    b[0].data.copy_(a[0].data)
    stepper(theirs, b)()
    assert "sy" in theirs.state[b[0]]
    back = LBFGS(c, **options)
    back.load_state_dict(theirs.state_dict())
    c[0].data.copy_(b[0].data)
    stepper(theirs, b)()
    stepper(back, c)()
    torch.testing.assert_close(b[0], c[0], rtol=1e-9, atol=1e-9)


def test_a_state_dict_is_left_alone_by_later_steps() -> None:
    params = problem()
    optimizer = LBFGS(params, max_iter=4, history_size=2)
    step = stepper(optimizer, params)
    step()
    state = optimizer.state_dict()
    before = copy.deepcopy(state["state"])
    step()
    torch.testing.assert_close(state["state"], before, rtol=0, atol=0)


def test_a_deep_copy_goes_on_alike() -> None:
    params = problem()
    optimizer = LBFGS(params, max_iter=3, history_size=2)
    step = stepper(optimizer, params)
    step()
    twin: Any = copy.deepcopy(optimizer)
    twins = twin.param_groups[0]["params"]
    again = stepper(twin, twins)
    step()
    again()
    assert torch.equal(params[0], twins[0])


def test_a_history_size_changed_between_steps_keeps_the_newest_pairs() -> None:
    params = problem()
    optimizer = LBFGS(params, max_iter=6)
    step = stepper(optimizer, params)
    step()
    newest = [y.clone() for y in optimizer.state[params[0]]["old_dirs"][-2:]]
    optimizer.param_groups[0]["history_size"] = 2
    optimizer.param_groups[0]["max_iter"] = 0
    step()
    for kept, expected in zip(optimizer.state[params[0]]["old_dirs"], newest, strict=True):
        assert torch.equal(kept, expected)


def test_init_state_then_a_step_is_a_first_step() -> None:
    params, twins = problem(), problem()
    optimizer, other = LBFGS(params), LBFGS(twins)
    optimizer.init_state()
    optimizer.load_state_dict(optimizer.state_dict())
    stepper(optimizer, params)()
    stepper(other, twins)()
    assert torch.equal(params[0], twins[0])


def test_a_state_dict_that_does_not_fit_changes_nothing() -> None:
    params = problem()
    optimizer = LBFGS(params, max_iter=3)
    step = stepper(optimizer, params)
    step()
    before = optimizer.state_dict()
    with pytest.raises(ValueError, match="number of parameter groups"):
        optimizer.load_state_dict({"state": {}, "param_groups": []})
    torch.testing.assert_close(optimizer.state_dict()["state"], before["state"], rtol=0, atol=0)


def test_bounds_stay_when_torchs_state_is_loaded() -> None:
    params = problem()
    optimizer = LBFGS(params, bounds=(0, 2))
    optimizer.load_state_dict(torch.optim.LBFGS(problem()).state_dict())
    assert optimizer.param_groups[0]["bounds"] == (0, 2)


@pytest.mark.parametrize("storage", [torch.float32, torch.bfloat16])
def test_memory_is_the_formula_of_the_docs(storage: torch.dtype) -> None:
    """Between steps: the history's ring, and the last direction and gradient."""
    size, history = 1000, 7
    param = Parameter(torch.ones(size))
    weights = torch.linspace(1, 100, size)
    options: dict[str, Any] = {"history_size": history, "history_dtype": storage}
    optimizer = LBFGS([param], max_iter=30, line_search_fn="more_thuente", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weights * param**2).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    tensors = []
    for value in optimizer.state[param].values():
        tensors += (
            [item for item in value if isinstance(item, Tensor)]
            if (isinstance(value, list))
            else [value]
        )
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in tensors
        if isinstance(tensor, Tensor) and tensor.numel() > history**2
    }
    assert len(optimizer.state[param]["old_dirs"]) == history
    assert sum(storages.values()) == 2 * history * size * storage.itemsize + 2 * size * 4
