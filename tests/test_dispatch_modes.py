"""Steps that somebody watches through torch's dispatcher: nothing may be done by address."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import Case, rule_optimizers
from torch import nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import steprule
from steprule.rules import OPTIMIZERS


class Recorder(TorchDispatchMode):
    """Notes which tensors are written."""

    def __init__(self) -> None:
        super().__init__()
        self.written: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for argument, schema in zip(args, func._schema.arguments, strict=False):
            if schema.alias_info is not None and schema.alias_info.is_write:
                tensors = argument if isinstance(argument, (list, tuple)) else [argument]
                self.written.update(t.data_ptr() for t in tensors)
        return result


class FunctionRecorder(TorchFunctionMode):
    calls = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def settled(cls: Any, **options: Any) -> tuple[nn.Parameter, Any]:
    param = nn.Parameter(torch.ones(4, 3))
    optimizer = cls([param], lr=0.1, **options)
    for i in range(4):
        param.grad = torch.full((4, 3), 0.1 * (i + 1))
        optimizer.step()
    return param, optimizer


@pytest.mark.parametrize("name", rule_optimizers())
def test_a_dispatch_mode_sees_every_update(name: str) -> None:
    """Whole native steps before it and after it, and the numbers of torch."""
    ours, mine = settled(Case(name, {}).ours)
    twin, theirs = settled(Case(name, {}).theirs)
    for watched in (True, False, False, True, False):
        ours.grad = torch.full((4, 3), 0.7)
        twin.grad = torch.full((4, 3), 0.7)
        if watched:
            with Recorder() as recorder:
                mine.step()
            assert ours.data_ptr() in recorder.written
        else:
            mine.step()
        theirs.step()
        torch.testing.assert_close(ours, twin, rtol=1e-5, atol=1e-6)


def test_a_function_mode_sees_the_update() -> None:
    _, optimizer = settled(steprule.Adam)
    with FunctionRecorder() as recorder:
        optimizer.step()
    assert recorder.calls > 3


def test_where_new_tensors_are_made_is_nobody_watching() -> None:
    _, optimizer = settled(steprule.Adam)
    with torch.device("cpu"):
        optimizer.step()
        assert optimizer.explain().rows[0].engine == "fused"
    with FunctionRecorder():
        row = optimizer.explain().rows[0]
        assert row.engine == "foreach"
        assert "mode is active" in row.reason
    assert optimizer.explain().rows[0].engine == "fused"


@pytest.mark.parametrize("cls", [steprule.SGD, torch.optim.SGD])
def test_a_traced_step_is_in_the_graph(cls: Any) -> None:
    def train(grad: torch.Tensor) -> torch.Tensor:
        param = torch.ones(3, requires_grad=True)
        param.grad = grad
        cls([param], lr=0.1).step()
        return param.detach().clone()

    traced = make_fx(train)(torch.ones(3))
    torch.testing.assert_close(traced(torch.ones(3)), torch.full((3,), 0.9))
    torch.testing.assert_close(traced(torch.full((3,), 2.0)), torch.full((3,), 0.8))


@pytest.mark.parametrize("cls", [steprule.SGD, torch.optim.SGD])
def test_a_settled_optimizer_is_traced(cls: Any) -> None:
    param, optimizer = settled(cls)
    before = param.detach().clone()

    def train(grad: torch.Tensor) -> torch.Tensor:
        param.grad = grad
        optimizer.step()
        return param.detach() * 1

    traced = make_fx(train)(torch.ones(4, 3))
    torch.testing.assert_close(param, before - 0.1)  # tracing took the step, as in torch
    with torch.no_grad():
        torch.testing.assert_close(traced(torch.ones(4, 3)), before - 0.2)


def test_sparse_rows_under_a_mode() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    before = embedding.weight.detach().clone()
    optimizer = steprule.SparseAdam(embedding.parameters())
    embedding(torch.tensor([1, 3])).sum().backward()
    with Recorder() as recorder:
        optimizer.step()
    assert embedding.weight.data_ptr() in recorder.written
    assert (embedding.weight != before).any(1).nonzero().flatten().tolist() == [1, 3]


@pytest.mark.parametrize("name", ["LBFGS"])
def test_lbfgs_under_a_mode(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from steprule.quasi_newton import passes

    monkeypatch.setattr(passes, "LARGE", 0)
    results = []
    for watched in (False, True):
        param = nn.Parameter(torch.linspace(-1, 1, 40))
        optimizer: Any = OPTIMIZERS[name.lower()]([param], lr=0.5)

        def closure(param: Any = param, optimizer: Any = optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = ((param - 0.3) ** 4).sum()
            loss.backward()
            return loss

        for _ in range(3):
            if watched:
                with Recorder() as recorder:
                    optimizer.step(closure)
                assert recorder.written
            else:
                optimizer.step(closure)
        results.append(param.detach())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-5)
