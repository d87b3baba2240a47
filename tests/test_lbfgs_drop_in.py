"""LBFGS in torch's place: where evaluations run out, options it takes, a state that is edited."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from helpers import needs_torch
from torch import Tensor
from torch.nn import Parameter

from steprule.quasi_newton import LBFGS

INF = float("inf")
DOUBLE = torch.tensor(1e-3, dtype=torch.float64)  # torch searches in the dtype of lr


def start(n: int = 6, seed: int = 0, dtype: torch.dtype = torch.float64) -> Parameter:
    generator = torch.Generator().manual_seed(seed)
    return Parameter(torch.randn(n, generator=generator, dtype=torch.float64).to(dtype))


class Run:
    """An optimizer on Rosenbrock's function in ``n`` variables, and what its closure was asked."""

    def __init__(self, cls: Any, param: Parameter, **options: Any) -> None:
        self.param, self.evaluations = param, 0
        self.optimizer = cls([param], **options)

    def closure(self) -> Tensor:
        self.evaluations += 1
        self.optimizer.zero_grad()
        x = self.param
        loss = (100 * (x[1::2] - x[::2] ** 2) ** 2 + (1 - x[::2]) ** 2).sum()
        loss.backward()
        return loss

    def step(self) -> None:
        self.optimizer.step(self.closure)

    @property
    def state(self) -> dict[str, Any]:
        return self.optimizer.state[self.param]  # type: ignore[no-any-return]


def both(seed: int = 0, n: int = 6, **options: Any) -> tuple[Run, Run]:
    return tuple(  # type: ignore[return-value]
        Run(cls, start(n, seed), **options) for cls in (torch.optim.LBFGS, LBFGS)
    )


def keys(optimizer: Any) -> set[str]:
    """A group's keys; torch has had ``maximize`` there since 2.14, we only where it is given."""
    return optimizer.param_groups[0].keys() - {"maximize"}  # type: ignore[no-any-return]


def assert_alike(theirs: Run, ours: Run, steps: int = 1, rtol: float = 1e-6) -> None:
    """The same parameters, evaluations and counts after each of so many steps."""
    for _ in range(steps):
        theirs.step()
        ours.step()
        torch.testing.assert_close(theirs.param, ours.param, rtol=rtol, atol=1e-8)
        assert theirs.evaluations == ours.evaluations
        for key in ("func_evals", "n_iter"):
            assert theirs.state[key] == ours.state[key]


def test_the_run_that_came_apart() -> None:
    assert_alike(*both(lr=0.8, max_iter=3, history_size=3, line_search_fn="strong_wolfe"), steps=40)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
@pytest.mark.parametrize("max_eval", [1, 2, 3, 4, 5, 7, 12])
@pytest.mark.parametrize("lr", [1.0, 0.8, 0.05])
@pytest.mark.parametrize("seed", range(4))
def test_where_evaluations_run_out(
    seed: int, lr: float, max_eval: int, line_search_fn: str | None
) -> None:
    if line_search_fn:
        needs_torch("2.13", "the line search does not look at max_eval")
    lr = lr if line_search_fn else lr / 50
    options = {"max_iter": 4, "max_eval": max_eval, "history_size": 3, "lr": lr}
    assert_alike(*both(seed, line_search_fn=line_search_fn, **options), steps=6)


def test_max_eval_0_moves_once_as_torch_does() -> None:
    assert_alike(*both(max_eval=0, lr=1e-3), steps=4)


@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe", "more_thuente", "backtracking"])
@pytest.mark.parametrize("max_eval", [1, 2, 3, 7])
def test_a_strict_limit_is_never_exceeded(line_search_fn: str | None, max_eval: int) -> None:
    options = {"lr": 3e-3, "max_iter": 50, "max_eval": max_eval, "line_search_fn": line_search_fn}
    run = Run(LBFGS, start(), strict_max_eval=True, **options)
    for done in range(1, 4):
        run.step()
        assert run.evaluations == done * max_eval
    loose = Run(LBFGS, start(), **options)
    loose.step()
    assert loose.evaluations <= max_eval + (line_search_fn in (None, "strong_wolfe"))


def test_the_strict_limit_is_an_option_like_others() -> None:
    plain = LBFGS([start()])
    assert keys(plain) == keys(torch.optim.LBFGS([start()]))
    strict = LBFGS([start()], strict_max_eval=True)
    plain.load_state_dict(strict.state_dict())
    assert plain.param_groups[0]["strict_max_eval"] is True
    strict.load_state_dict(torch.optim.LBFGS([start()]).state_dict())
    assert strict.param_groups[0]["strict_max_eval"] is True
    with pytest.raises(ValueError, match="strict_max_eval must be the same in all groups"):
        LBFGS([{"params": [start()]}, {"params": [start()], "strict_max_eval": True}])


TAKEN: list[dict[str, Any]] = [
    *({"tolerance_grad": value} for value in (-INF, -1e-9, 0, 1e-2, 1, INF, np.float32(1e-3))),
    *({"tolerance_change": value} for value in (0, 1e-2, INF, -1e-12, -INF, np.float64(1e-3))),
    *({"max_iter": value} for value in (0, 1, 3.0, 2.5, np.int64(3))),
    *({"max_eval": value} for value in (1, 2.5, 25.0, 20 * 1.25, np.int32(7), INF)),
    *({"history_size": value} for value in (1, 2, np.int64(3))),
    *({"lr": value} for value in (0, 0.0, 1e-3, DOUBLE, DOUBLE[None])),
    {"max_eval": None},
]


@pytest.mark.parametrize("options", TAKEN, ids=str)
@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_what_torch_takes_is_taken_and_means_the_same(
    options: dict[str, Any], line_search_fn: str | None
) -> None:
    lr = 1.0 if line_search_fn else 1e-3
    if line_search_fn and "lr" in options and float(options["lr"]) == 0:
        pytest.skip("torch divides by zero")
    if line_search_fn and options.get("lr"):
        needs_torch("2.13", "the line search does not look at max_eval")
    if isinstance(options.get("lr"), Tensor) and options["lr"].dim():
        needs_torch("2.9", "lr is no tensor of one dimension")
    if options.get("tolerance_change") == -INF and line_search_fn is None:
        pytest.skip("torch's directions are 0 then")
    more = {"lr": lr, "max_iter": 5, "line_search_fn": line_search_fn, **options}
    theirs, ours = both(**more)
    assert keys(ours.optimizer) == keys(theirs.optimizer)
    for key in keys(theirs.optimizer) - {"params"}:
        value = theirs.optimizer.defaults[key]
        assert ours.optimizer.defaults[key] == value
    assert_alike(theirs, ours, steps=4)
    ours.optimizer.load_state_dict(theirs.optimizer.state_dict())


def test_an_lr_that_starts_at_0() -> None:
    """As a warm-up sets it."""
    theirs, ours = both(lr=0.0, max_iter=3)
    for lr in (0.0, 0.0, 1e-3, 1e-3):
        theirs.optimizer.param_groups[0]["lr"] = ours.optimizer.param_groups[0]["lr"] = lr
        assert_alike(theirs, ours)


def test_single_precision_near_a_minimum() -> None:
    """Where losses differ by less than rounding, it is torch's rounding that decides."""
    for seed in range(6):
        ends = []
        for cls in (torch.optim.LBFGS, LBFGS):
            x = start(4, seed, torch.float32)
            optimizer = cls([x], lr=0.8, max_iter=4, line_search_fn="strong_wolfe")

            def closure(x: Any = x, optimizer: Any = optimizer) -> Tensor:
                optimizer.zero_grad()
                loss = (x.sin() * 3 + 0.1 * x**2).sum()
                loss.backward()
                return loss

            for _ in range(8):
                optimizer.step(closure)
            ends.append((x.detach(), optimizer.state[x]["func_evals"]))
        torch.testing.assert_close(ends[0][0], ends[1][0], rtol=1e-3, atol=1e-3)


def edit_tensor(key: str, factor: float) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.update({key: state[key] * factor})


EDITS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "t halved": edit_tensor("t", 0.5),
    "t a tensor": lambda state: state.update(t=torch.tensor(1e-4, dtype=torch.float64)),
    "n_iter 0": lambda state: state.update(n_iter=0),
    "n_iter raised": lambda state: state.update(n_iter=1000),
    "func_evals 0": lambda state: state.update(func_evals=0),
    "d replaced": edit_tensor("d", 0.5),
    "d in place": lambda state: state["d"].mul_(0.5),
    "prev_flat_grad replaced": edit_tensor("prev_flat_grad", 0.9),
    "prev_flat_grad in place": lambda state: state["prev_flat_grad"].mul_(0.9),
    "H_diag": edit_tensor("H_diag", 2.0),
    "pairs dropped": lambda state: [state[k].clear() for k in ("old_dirs", "old_stps", "ro")],
    "lists replaced": lambda state: state.update(old_dirs=[], old_stps=[], ro=[]),
    "oldest pair dropped": lambda state: [state[k].pop(0) for k in ("old_dirs", "old_stps", "ro")],
    "old_dirs in place": lambda state: [y.mul_(1.5) for y in state["old_dirs"][:1]],
    "old_dirs replaced": lambda state: state.update(old_dirs=[y * 1.5 for y in state["old_dirs"]]),
    "one of old_dirs": lambda state: state["old_dirs"].__setitem__(0, state["old_dirs"][0] * 1.5),
    "old_stps in place": lambda state: [s.mul_(0.5) for s in state["old_stps"]],
    "ro": lambda state: state.update(ro=[value * 0.5 for value in state["ro"]]),
    "a ro": lambda state: state["ro"].__setitem__(0, state["ro"][0] * 0.5),
    "prev_loss": lambda state: state.update(prev_loss=1e9),
    "al": lambda state: state.update(al=[None] * 50),
    "a key of one's own": lambda state: state.update(mine=torch.ones(3)),
    "cleared": lambda state: state.clear(),
}


@pytest.mark.parametrize("when", ["between steps", "before loading"])
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("line_search_fn", [None, "strong_wolfe"])
def test_edits_of_the_state_count_as_in_torch(
    edit: str, line_search_fn: str | None, when: str
) -> None:
    options = {"lr": 0.5 if line_search_fn else 2e-2, "max_iter": 3, "history_size": 5}
    theirs, ours = both(line_search_fn=line_search_fn, max_eval=40, **options)
    assert_alike(theirs, ours, steps=2)
    for run in (theirs, ours):
        if when == "between steps":
            EDITS[edit](run.state)
        else:
            saved = run.optimizer.state_dict()
            EDITS[edit](saved["state"][0])
            run.optimizer.load_state_dict(saved)
    assert_alike(theirs, ours, steps=2)
    if edit == "a key of one's own":
        assert ours.state["mine"].tolist() == [1.0] * 3


def test_the_state_stays_the_same_dict() -> None:
    """Who watches it need not fetch it anew."""
    for run in both(lr=1e-3, max_iter=2):
        run.step()
        watched = run.state
        for _ in range(3):
            run.step()
        assert watched is run.state
        assert watched["n_iter"] == 4


def test_an_edit_does_not_cost_the_state_when_nothing_was_edited() -> None:
    """The memory is only made anew where it has to be."""
    run = Run(LBFGS, start(), max_iter=3, line_search_fn="strong_wolfe")
    run.step()
    history = run.optimizer._memory.history
    run.step()
    assert run.optimizer._memory.history is history
    run.state["t"] *= 0.5
    run.step()
    assert run.optimizer._memory.history is not history
    assert math.isfinite(run.optimizer.result().loss)


def test_params_by_torchs_private_name() -> None:
    for run in both(lr=1e-3):
        optimizer: Any = run.optimizer
        assert optimizer._params is optimizer.param_groups[0]["params"]
        other = Parameter(torch.zeros(6, dtype=torch.float64))
        optimizer._params = [other]
        run.param = other
        run.step()
        assert (other != 0).any()
