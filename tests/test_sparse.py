"""Sparse gradients: torch's numbers, the gradient's rows alone, dense and sparse side by side."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import steprule
from steprule.engines.rows import engine
from steprule.rules import OPTIMIZERS


@pytest.fixture(autouse=True)
def _say_whether_to_check_sparse_tensors() -> Any:
    """torch warns, once, whoever makes a sparse tensor without having chosen."""
    with torch.sparse.check_sparse_tensor_invariants(enable=True):
        yield


TAKERS = [c.__name__ for c in OPTIMIZERS.values() if c.rule and c.rule.sparse != "refused"]


def table() -> nn.Embedding:
    torch.manual_seed(0)
    return nn.Embedding(20, 4, sparse=True)


def train(make: Any, steps: int = 6) -> tuple[nn.Embedding, Any]:
    """Rows 1, 5 and 2, with one of them twice: the gradient is not coalesced."""
    embedding = table()
    optimizer = make(embedding.parameters())
    for i in range(steps):
        optimizer.zero_grad()
        (embedding(torch.tensor([1, 5, 5, 2 + i])) ** 2).sum().backward()
        assert not embedding.weight.grad.is_coalesced() or i < 0
        optimizer.step()
    return embedding, optimizer


OPTIONS = [
    ("SGD", {"lr": 0.1}),
    ("SGD", {"lr": 0.1, "maximize": True}),
    ("SGD", {"lr": 0.1, "momentum": 0.9}),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ("Adagrad", {"lr": 0.1}),
    ("Adagrad", {"lr": 0.1, "lr_decay": 0.1, "initial_accumulator_value": 0.1}),
    ("SparseAdam", {"lr": 0.1}),
    ("SparseAdam", {"lr": 0.1, "maximize": True, "betas": (0.8, 0.99)}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_trajectory_is_torchs(name: str, options: dict[str, Any]) -> None:
    ours, _ = train(lambda p: OPTIMIZERS[name.lower()](p, **options))
    theirs, _ = train(lambda p: getattr(torch.optim, name)(p, **options))
    torch.testing.assert_close(ours.weight, theirs.weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TAKERS)
def test_other_rows_are_neither_read_nor_written(name: str) -> None:
    embedding = table()
    optimizer = OPTIMIZERS[name.lower()](embedding.parameters(), lr=0.1)
    optimizer.init_state()
    weight = embedding.weight
    with torch.no_grad():
        weight[7:] = float("nan")
        for slot in optimizer.state.get(weight, {}).values():
            if torch.is_tensor(slot) and slot.shape == weight.shape:
                slot[7:] = float("nan")
    embedding(torch.tensor([1, 3])).sum().backward()
    before = weight.detach().clone()
    optimizer.step()
    assert torch.isfinite(weight[:7]).all()
    assert torch.equal(weight[[0, 2, 4, 5, 6]], before[[0, 2, 4, 5, 6]])
    assert weight[7:].isnan().all()
    assert optimizer.explain().rows[0].engine == "rows"


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_one_optimizer_takes_dense_and_sparse(name: str) -> None:
    embedding, linear = table(), nn.Linear(4, 2)
    params = [*embedding.parameters(), *linear.parameters()]
    optimizer = OPTIMIZERS[name.lower()](params, lr=0.1)
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        optimizer.zero_grad()
        linear(embedding(torch.tensor([1, 2]))).sum().backward()
        optimizer.step()
    assert all(not torch.equal(p, b) for p, b in zip(params, before, strict=True))
    assert [row.engine for row in optimizer.explain().rows] == ["rows", "fused", "fused"]


def test_a_gradient_may_turn_from_sparse_to_dense_and_back() -> None:
    embedding = table()
    twin = nn.Parameter(embedding.weight.detach().clone())
    ours, theirs = steprule.SGD([embedding.weight], lr=0.1), torch.optim.SGD([twin], lr=0.1)
    grad = torch.zeros(20, 4)
    grad[3] = 1.0
    for sparse in (True, False, True, True, False):
        embedding.weight.grad = grad.to_sparse(1) if sparse else grad.clone()
        twin.grad = grad.clone()
        ours.step()
        theirs.step()
    torch.testing.assert_close(embedding.weight, twin)


def test_refusal_names_the_parameter_and_who_takes_it() -> None:
    embedding = table()
    embedding(torch.tensor([1])).sum().backward()
    before = embedding.weight.detach().clone()
    optimizer = steprule.Adam(embedding.named_parameters())
    with pytest.raises(RuntimeError, match="Adam does not support sparse gradients: 'weight'") as e:
        optimizer.step()
    assert all(name in str(e.value) for name in ("SGD", "Adagrad", "SparseAdam"))
    assert torch.equal(embedding.weight, before)
    assert not optimizer.state


def test_dense_gradients_are_refused_by_sparse_adam() -> None:
    param = torch.ones(3, requires_grad=True)
    param.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match="does not support dense gradients"):
        steprule.SparseAdam([param]).step()


@pytest.mark.parametrize("name", ["SGD", "Adagrad"])
def test_decay_with_a_sparse_gradient_says_what_to_do(name: str) -> None:
    embedding = table()
    embedding(torch.tensor([1])).sum().backward()
    optimizer = OPTIMIZERS[name.lower()](embedding.parameters(), lr=0.1, weight_decay=0.1)
    with pytest.raises(RuntimeError, match=r"not compatible with sparse gradients.*weight_decay=0"):
        optimizer.step()


@pytest.mark.parametrize("direction", ["to torch", "from torch"])
def test_sparse_adam_state_goes_both_ways(direction: str) -> None:
    classes = [steprule.SparseAdam, torch.optim.SparseAdam]
    first, second = classes if direction == "to torch" else classes[::-1]
    embedding, optimizer = train(lambda p: first(p, lr=0.1), steps=3)
    successor = second(embedding.parameters(), lr=0.1)
    successor.load_state_dict(optimizer.state_dict())
    whole, _ = train(lambda p: torch.optim.SparseAdam(p, lr=0.1), steps=6)
    for i in range(3, 6):
        successor.zero_grad()
        (embedding(torch.tensor([1, 5, 5, 2 + i])) ** 2).sum().backward()
        successor.step()
    torch.testing.assert_close(embedding.weight, whole.weight, rtol=1e-6, atol=1e-6)


def test_an_empty_sparse_gradient_counts_as_a_step_of_nothing() -> None:
    weight = torch.ones(4, 2, requires_grad=True)
    weight.grad = torch.sparse_coo_tensor(
        torch.zeros(1, 0, dtype=torch.long), torch.zeros(0, 2), (4, 2)
    )
    optimizer = steprule.SparseAdam([weight])
    optimizer.step()
    assert (weight == 1).all()
    assert optimizer.state[weight]["step"] == 1


@pytest.mark.parametrize("kind", ["bfloat16", "complex", "two sparse axes"])
def test_what_the_kernel_cannot_take_is_gathered_and_scattered(kind: str) -> None:
    dtype = {"bfloat16": torch.bfloat16, "complex": torch.complex64}.get(kind, torch.float32)
    sparse_axes = 2 if kind == "two sparse axes" else 1
    dense = torch.zeros(6, 4, dtype=dtype)
    dense[1], dense[4, 2] = 1.5, -0.5
    weight = torch.ones(6, 4, dtype=dtype, requires_grad=True)
    twin = weight.detach().clone().requires_grad_()
    ours, reference = steprule.Adagrad([weight], lr=0.1), steprule.Adagrad([twin], lr=0.1)
    for _ in range(3):
        weight.grad, twin.grad = dense.to_sparse(sparse_axes), dense.clone()
        ours.step()
        reference.step()
    torch.testing.assert_close(weight, twin)
    assert ours.explain().rows[0].engine == "rows"


@pytest.mark.parametrize("kind", [ImportError, OSError])
@pytest.mark.parametrize("name", TAKERS)
def test_rows_are_gathered_where_the_compiler_cannot_be_loaded(
    name: str, kind: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = train(lambda p: OPTIMIZERS[name.lower()](p, lr=0.1))
    real = builtins.__import__

    def refuse(wanted: str, *args: Any, **kwargs: Any) -> Any:
        if wanted == "steprule.engines.rows" and "kernel" in args[2]:
            raise kind("libllvmlite.so: cannot open shared object file")
        return real(wanted, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    engine._kernel.cache_clear()
    try:
        embedding, optimizer = train(lambda p: OPTIMIZERS[name.lower()](p, lr=0.1))
        assert engine._kernel() is None
    finally:
        monkeypatch.undo()
        engine._kernel.cache_clear()
    assert optimizer.explain().rows[0].engine == "rows"
    # One float32 rounding or two for each step: entries of a row are added in another order.
    torch.testing.assert_close(embedding.weight, expected.weight, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", TAKERS)
@given(rows=st.lists(st.integers(0, 6), max_size=40), width=st.integers(1, 9), many=st.booleans())
def test_entries_of_one_row_are_added_up_first(
    name: str, rows: list[int], width: int, many: bool
) -> None:
    repeats = 500 if many else 1  # enough for several threads
    indices = torch.tensor(rows * repeats, dtype=torch.long).reshape(1, -1)
    values = torch.randn(indices.shape[1], width, generator=torch.Generator().manual_seed(0))
    params = [torch.ones(7, width, requires_grad=True) for _ in range(2)]
    grads = [torch.sparse_coo_tensor(indices, values, (7, width)) for _ in params]
    params[0].grad, params[1].grad = grads[0], grads[1].coalesce()
    for param in params:
        OPTIMIZERS[name.lower()]([param], lr=0.1).step()
    # Sums of 2000 numbers in another order: a few float32 roundings of their size apart.
    torch.testing.assert_close(params[0], params[1], rtol=1e-4, atol=1e-4)


def test_an_entry_outside_the_table_is_refused_and_nothing_changes() -> None:
    weight = torch.ones(4, 2, requires_grad=True)
    optimizer = steprule.SparseAdam([("table", weight)])
    weight.grad = torch.sparse_coo_tensor(
        torch.tensor([[1, 9]]), torch.ones(2, 2), (4, 2), check_invariants=False
    )
    with pytest.raises(IndexError, match="'table' has an entry for row 9, the parameter has 4"):
        optimizer.step()
    assert (weight == 1).all()


@pytest.mark.parametrize("name", ["SGD", "Adagrad", "SparseAdam"])
def test_threads_give_the_same_bits(name: str) -> None:
    """Rows are shared out among threads; entries of one row are added up in one order."""
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            generator = torch.Generator().manual_seed(0)
            param = torch.randn(4000, 16, generator=generator).requires_grad_()
            optimizer = OPTIMIZERS[name.lower()]([param], lr=0.1)
            for _ in range(2):
                rows = torch.randint(4000, (1, 6000), generator=generator)
                values = torch.randn(6000, 16, generator=generator)
                param.grad = torch.sparse_coo_tensor(
                    rows, values, param.shape, check_invariants=True
                )
                optimizer.step()
            results.append(param.detach())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0], other) for other in results[1:])
