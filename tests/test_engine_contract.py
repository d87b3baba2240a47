"""The contract between planner and engines: one made by it alone, and what all of them keep."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import ENGINES, Case, rule_optimizers
from torch import nn
from toy_engine import ToyRunner

import steprule
from steprule.engines import registry


@pytest.fixture
def toy() -> Iterator[None]:
    """The toy engine, registered."""
    registry.register(registry.Entry("toy", "toy_engine:ToyEngine"))
    ToyRunner.made.clear()
    yield
    registry.unregister("toy")


def with_gradients(*shapes: tuple[int, ...]) -> list[nn.Parameter]:
    params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
    for param in params:
        param.grad = torch.full_like(param, 0.5)
    return params


def test_an_engine_from_its_own_file_updates_parameters(toy: None) -> None:
    params = with_gradients((3,), (3,), (4,), (2, 2), (200,))
    groups = [{"params": params[:1], "lr": 1.0}, {"params": params[1:]}]
    optimizer = steprule.SGD(groups, lr=0.5, engine="toy")
    with pytest.warns(UserWarning, match="runs on engine"):
        optimizer.step()
    assert params[0].tolist() == [0.5] * 3
    assert params[1].tolist() == [0.75] * 3
    assert params[3].tolist() == [[0.75, 0.75]] * 2
    rows = optimizer.explain().rows
    assert [row.engine for row in rows] == ["toy", "toy", "toy", "eager", "eager"]
    assert rows[3].reason == "toys are for vectors"
    assert rows[4].reason == "this toy is too small"
    assert ToyRunner.made == [2, 1]  # buckets by shape, kept from step to step
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    assert params[0].tolist() == [0.5] * 3
    assert ToyRunner.made == [2, 1]


def test_an_engine_is_asked_for_by_a_known_name() -> None:
    with pytest.raises(ValueError, match="engine must be 'auto' or one of 'eager', 'foreach', "):
        steprule.SGD(with_gradients((3,)), engine="toy")
    with pytest.raises(ValueError, match="'rows'"):  # not one that people choose
        steprule.SGD(with_gradients((3,)), engine="rows")


def test_auto_takes_no_engine_that_is_not_for_the_device(toy: None) -> None:
    params = with_gradients((3,))
    optimizer = steprule.SGD(params)
    optimizer.step()
    assert optimizer.explain().rows[0].engine == "fused"
    assert ToyRunner.made == []


def test_a_runner_that_never_fits_is_an_error_and_not_a_loop() -> None:
    registry.register(registry.Entry("stubborn", "toy_engine:StubbornEngine"))
    try:
        with pytest.raises(RuntimeError, match="compute the gradients again"):
            steprule.SGD(with_gradients((3,)), engine="stubborn").step()
    finally:
        registry.unregister("stubborn")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", rule_optimizers())
def test_gradients_may_come_and_go(name: str, engine: str) -> None:
    """Each step some are missing, one of them from the start; the state follows torch's."""
    cls: Any = Case(name, {})
    shapes = [(4, 3)] * 3
    runs = []
    for make in (cls.ours, cls.theirs):
        params = [nn.Parameter(torch.ones(shape)) for shape in shapes]
        ours = make is cls.ours and cls.ours.rule.elementwise
        optimizer = make(params, lr=0.01, **({"engine": engine} if ours else {}))
        for step in range(9):
            for i, param in enumerate(params):
                generator = torch.Generator().manual_seed(10 * step + i)
                present = step % 3 != i and (i != 2 or step > 4)
                param.grad = torch.randn(4, 3, generator=generator) if present else None
            optimizer.step()
        runs.append((params, optimizer.state_dict()["state"]))
    torch.testing.assert_close(runs[0][0], runs[1][0], rtol=1e-5, atol=1e-6)
    assert runs[0][1].keys() == runs[1][1].keys()
    for key, entry in runs[0][1].items():
        if "step" in entry:
            assert float(entry["step"]) == float(runs[1][1][key]["step"])


@pytest.mark.parametrize("engine", ENGINES)
def test_planning_anew_is_not_needed_for_missing_gradients(engine: str) -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(3)]
    optimizer = steprule.Adam(params, engine=engine)
    plans = set()
    for step in range(6):
        for i, param in enumerate(params):
            param.grad = torch.ones(3) if step == 0 or i != step % 3 else None
        optimizer.step()
        plans.add(id(optimizer._plan))
    assert len(plans) == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_step_keeps_no_gradient(engine: str) -> None:
    params = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    optimizer = steprule.Adam(params, engine=engine)
    for _ in range(3):
        for param in params:
            param.grad = torch.ones(3)
        optimizer.step()
    before = [param.detach().clone() for param in params]
    params[0].grad = torch.ones(3)
    params[1].data = torch.ones(5)
    params[1].grad = torch.ones(5)
    seen = weakref.ref(params[0].grad)
    with pytest.raises(RuntimeError, match="parameter 1 of group 0"):
        optimizer.step()
    assert torch.equal(params[0], before[0])
    params[0].grad = None
    assert seen() is None


@pytest.mark.parametrize("engine", ENGINES)
def test_a_step_of_another_thread_between_collect_and_run(engine: str) -> None:
    """What it let go of is found again: nobody's step is lost."""
    param = nn.Parameter(torch.ones(3))
    optimizer = steprule.SGD([param], lr=0.5, engine=engine)
    param.grad = torch.ones(3)
    optimizer.step()
    plan = optimizer._plan
    assert plan is not None
    with torch.no_grad():
        assert plan.collect()
        assert plan.collect()
        plan.run()
        plan.run()
    assert param.tolist() == [-0.5] * 3


def test_an_engine_that_cannot_be_imported_is_passed_over() -> None:
    registry.register(registry.Entry("absent", "no_such_module:Engine"), before="fused")
    try:
        params = with_gradients((3,))
        optimizer = steprule.SGD(params)
        optimizer.step()
        row = optimizer.explain().rows[0]
        assert row.engine == "fused"
        assert "no_such_module" in row.reason
    finally:
        registry.unregister("absent")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_refused_first_step_leaves_no_state(engine: str) -> None:
    registry.register(registry.Entry("stubborn", "toy_engine:StubbornEngine"))
    try:
        params = with_gradients((3,), (2, 2))
        optimizer = steprule.Adam(params, engine="stubborn")
        with pytest.raises(RuntimeError, match="compute the gradients again"):
            optimizer.step()
        assert optimizer.state_dict()["state"] == {}
    finally:
        registry.unregister("stubborn")


def test_explaining_leaves_a_count_as_it_is() -> None:
    params = with_gradients((3,))
    optimizer = steprule.Adam(params)
    optimizer.step()
    optimizer.state[params[0]]["step"] = 1  # from an old checkpoint
    optimizer.explain()
    assert optimizer.state[params[0]]["step"] == 1
    assert type(optimizer.state[params[0]]["step"]) is int


def test_an_update_that_raised_is_not_the_first_twice() -> None:
    """Of two runners the second one fails: what the first has updated is not fresh any more."""
    fused, eager = with_gradients((3,), (2, 2))
    groups = [{"params": [fused]}, {"params": [eager], "foreach": False}]
    optimizer = steprule.SGD(groups, lr=0.1, momentum=0.9, dampening=0.5)
    twin = torch.ones(3, requires_grad=True)
    theirs = torch.optim.SGD([twin], lr=0.1, momentum=0.9, dampening=0.5)
    twin.grad = torch.full((3,), 0.5)
    theirs.step()
    theirs.step()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("steprule.engines.eager.engine._update", _raise)
        with pytest.raises(MemoryError):
            optimizer.step()
    optimizer._plan = None
    optimizer.step()
    torch.testing.assert_close(fused, twin)


def _raise(*_: Any) -> None:
    raise MemoryError
