"""`steprule compare`: everybody gets the same, whatever the user's loss and data do."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from steprule.cli.budget import Budget
from steprule.cli.contenders import parse_contenders
from steprule.cli.runs import Run
from steprule.cli.training import Settings, train
from steprule.problems import Problem, ProblemError, load_problem


def batch(number: int) -> tuple[Tensor, Tensor]:
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(number))
    return x, x.sum(dim=1, keepdim=True)


def squared(model: nn.Module, batch: Any) -> Tensor:
    return (model(batch[0]) - batch[1]).square().mean()


def problem(**changes: Any) -> Problem:
    values = {"model": nn.Linear(3, 1), "loss": squared, "data": [batch(i) for i in range(6)]}
    return Problem(**(values | changes))


def trained(optimizers: str = "sgd,adam", steps: int = 6, **changes: Any) -> list[Run]:
    contenders = parse_contenders(optimizers, [], "eager")[0]
    settings = Settings(lambda seed: problem(**changes), Budget(steps=steps), 4)
    runs: list[Run] = []
    train(contenders, settings, 0, runs=runs, on_step=lambda run: None)
    return runs


def test_a_loss_may_take_its_batch_apart() -> None:
    def popping(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return (model(batch.pop("x")) - batch.pop("y")).square().mean()

    data = [dict(zip("xy", batch(i), strict=True)) for i in range(6)]
    for run in trained("sgd,adam,sam:sgd", loss=popping, data=data, steps=12):
        assert len(run.batch_losses) == 12


def test_a_loss_that_changes_tensors_of_its_batch_is_refused() -> None:
    def scaled(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return squared(model, (batch[0].div_(255), batch[1]))

    with pytest.raises(ProblemError, match="loss changed its batch in place"):
        trained(loss=scaled)


@dataclasses.dataclass(frozen=True)
class Rows:
    x: Tensor
    y: np.ndarray[Any, Any]


def test_batches_of_other_kinds_are_looked_after_as_well() -> None:
    def loss(model: nn.Module, rows: Rows) -> Tensor:
        rows.y[0] += 1
        seen.append(float(rows.y[0, 0]))
        return squared(model, (rows.x, torch.from_numpy(rows.y)))

    def in_place(model: nn.Module, rows: Rows) -> Tensor:
        return squared(model, (rows.x.add_(1), torch.from_numpy(rows.y)))

    seen: list[float] = []
    data = [Rows(batch(0)[0], batch(0)[1].numpy())]
    trained(loss=loss, data=data)
    assert len(seen) == 12
    assert len(set(seen)) == 1
    with pytest.raises(ProblemError, match="loss changed its batch in place"):
        trained(loss=in_place, data=data)


def test_a_list_of_sequences_of_different_lengths_is_of_batches() -> None:
    data = [torch.ones(4, length, 3) for length in (2, 3, 5, 2)]
    trained(loss=lambda model, batch: model(batch).square().mean(), data=data)


class OneBuffer:
    """Fills the same tensors for every batch, and a dict's array beside them."""

    def __iter__(self) -> Any:
        x, y = torch.empty(4, 3), torch.empty(4, 1)
        for number in range(6):
            for mine, new in zip((x, y), batch(number), strict=True):
                mine.copy_(new)
            yield [{"x": x.numpy(), "xy": (x, y)}]


def test_data_that_fill_one_buffer_again_and_again_are_copied() -> None:
    def loss(model: nn.Module, batch: Any) -> Tensor:
        assert (batch[0]["x"] == batch[0]["xy"][0].numpy()).all()
        return squared(model, batch[0]["xy"])

    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    (buffered,) = trained("sgd", model=model, loss=loss, data=OneBuffer())
    (listed,) = trained("sgd", model=model)
    assert buffered.batch_losses == listed.batch_losses


def test_a_loss_of_a_model_from_outside_is_refused() -> None:
    outside = nn.Linear(3, 1)
    with pytest.raises(ProblemError, match="not a model from outside"):
        trained(model=outside, loss=lambda model, batch: squared(outside, batch))


@pytest.mark.parametrize("is_whole_in_eval", [False, True])
def test_parts_that_are_frozen_in_eval_mode_stay_so(is_whole_in_eval: bool) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1))
    (model if is_whole_in_eval else model[1]).eval()
    modes = set()

    def loss(model: Any, batch: Any) -> Tensor:
        modes.add((model.training, model[1].training))
        return squared(model, batch)

    trained(model=model, loss=loss, evaluate=lambda model: 0.0)
    assert modes == {(True, is_whole_in_eval)}


def test_dropout_is_the_same_for_those_who_evaluate_several_times_a_step() -> None:
    drawn: dict[int, list[float]] = {}

    def loss(model: nn.Module, batch: Any) -> Tensor:
        drawn.setdefault(id(model), []).append(float(torch.rand(())))
        return squared(model, batch)

    trained("sgd,sam:sgd", loss=loss)
    once, twice = drawn.values()
    assert len(set(once)) == 6
    assert twice == [number for number in once for _ in range(2)]


def test_the_first_step_is_on_no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    (run,) = trained("sgd", steps=3)
    assert run.points[0].seconds == 0
    assert run.points[-1].seconds == sum(run.train_seconds[1:])


@pytest.mark.parametrize("is_evaluated", [False, True])
def test_a_stopped_run_is_looked_at_where_it_stopped(is_evaluated: bool) -> None:
    count = iter(range(9))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        if next(count) == 8:
            raise KeyboardInterrupt
        return squared(model, batch)

    def evaluate(model: nn.Module) -> float:
        return 1.0

    contenders = parse_contenders("sgd,adam", [], "eager")[0]
    runs: list[Run] = []
    made = problem(loss=loss, evaluate=evaluate if is_evaluated else None)
    settings = Settings(lambda seed: made, Budget(steps=200), 4)
    with pytest.raises(KeyboardInterrupt):
        train(contenders, settings, 0, runs=runs, on_step=lambda run: None)
    sgd, adam = runs
    # A model can be evaluated where it is alone; losses are there of each step.
    assert [point.step for point in sgd.points] == ([0, 6] if is_evaluated else [2])
    assert [point.step for point in adam.points] == ([0, 2] if is_evaluated else [2])
    assert all(run.points[-1].is_out_of_turn for run in runs)
    assert len(adam.rates) == len(adam.batch_losses) == 2


# ---- what makes a problem ------------------------------------------------------------------

MAKERS = """
import torch
given = {}
def made(**values):
    given.update(values)
    x = torch.randn(4, 3)
    return torch.nn.Linear(3, 1), lambda model, batch: model(batch[0]).mean(), (x, x)
def second(n=256, seed=0): return made(n=n, seed=seed)
def keyword(*, seed): return made(seed=seed)
def first(number): return made(seed=number)
def fails(seed):
    return inner(seed)
def inner(seed):
    return [][seed]
def _private(): pass
"""


@pytest.fixture
def makers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("makers.py").write_text(MAKERS)


@pytest.mark.usefixtures("makers")
@pytest.mark.parametrize("name", ["second", "keyword", "first"])
def test_the_seed_goes_to_the_parameter_of_that_name(name: str) -> None:
    made = load_problem(f"makers.py:{name}", seed=5)
    given = made.loss.__globals__["given"]  # type: ignore[attr-defined]
    assert given == ({"n": 256, "seed": 5} if name == "second" else {"seed": 5})


@pytest.mark.usefixtures("makers")
def test_an_error_in_the_users_function_says_where() -> None:
    with pytest.raises(ProblemError, match=r"IndexError: .* \(makers\.py, line 14\)"):
        load_problem("makers.py:fails", seed=1)
    with pytest.raises(ProblemError, match=r"it has made, second, keyword, first, fails, inner$"):
        load_problem("makers.py:nothing")


def kept_result() -> nn.Module:
    model = nn.Linear(3, 1)
    model.kept = model.weight * 2
    return model


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data": tuple(one.numpy() for one in batch(0))}, "rows must be tensors, got NumPy"),
        ({"data": [*batch(0)]}, r"look like rows: give a tuple, \(x, y\)"),
        ({"data": {"x": batch(0)}}, "data must be batches .* got dict"),
        ({"loss": lambda model, batch: squared(model, batch) * 1j}, "loss returned a complex"),
        ({"model": kept_result()}, "model can't be copied"),
        ({"evaluate": lambda model: {"top accuracy": 0.5, "f": 1}}, "'top accuracy' to rank by"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_mistakes_in_a_problem_are_told_by_name(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ProblemError, match=expected):
        trained(**changes)
