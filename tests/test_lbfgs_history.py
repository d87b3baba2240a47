"""The direction: Nocedal's two-loop recursion, in a few products, from a ring buffer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from steprule.quasi_newton import passes
from steprule.quasi_newton.history import History


def two_loop(steps: list[Tensor], changes: list[Tensor], grad: Tensor, gamma: float) -> Tensor:
    """The recursion as its paper has it, in float64."""
    q, weights = grad.double(), []
    pairs = [(s.double(), y.double()) for s, y in zip(steps, changes, strict=True)]
    for s, y in reversed(pairs):
        weights.append(s.dot(q) / s.dot(y))
        q = q - weights[-1] * y
    r = gamma * q
    for (s, y), weight in zip(pairs, reversed(weights), strict=True):
        r = r + s * (weight - y.dot(r) / s.dot(y))
    return -r


def pushed(
    capacity: int, size: int, count: int, dtype: torch.dtype, storage: torch.dtype
) -> tuple[History, list[Tensor], list[Tensor]]:
    """A history after ``count`` pairs of a quadratic, and the pairs it should hold."""
    generator = torch.Generator().manual_seed(count)
    history = History(capacity, size, storage, torch.empty(0, dtype=dtype))
    weights = torch.linspace(1, 30, size, dtype=dtype)
    steps, changes = [], []
    for _ in range(count):
        s = history.rounded(torch.randn(size, generator=generator, dtype=dtype))
        y = history.rounded(weights * s)
        history.push(s, y, float(s.dot(y)), float(s.dot(y) / y.dot(y)))
        steps.append(s)
        changes.append(y)
    return history, steps[-capacity:], changes[-capacity:]


@pytest.mark.parametrize("uses_kernels", [False, True], ids=["torch", "kernels"])
@pytest.mark.parametrize("size", [1, 7, 1000, 70_001])
@pytest.mark.parametrize("count", [0, 1, 5, 6, 13])
@pytest.mark.parametrize(
    ("dtype", "storage", "tolerance"),
    [
        (torch.float64, torch.float64, 1e-11),
        (torch.float32, torch.float32, 1e-4),
        (torch.float32, torch.bfloat16, 1e-4),
        (torch.float64, torch.float32, 1e-11),
    ],
)
def test_direction_is_the_two_loop_recursion(
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype,
    storage: torch.dtype,
    tolerance: float,
    count: int,
    size: int,
    uses_kernels: bool,
) -> None:
    monkeypatch.setattr(passes, "LARGE", 0 if uses_kernels else 2**60)
    history, steps, changes = pushed(5, size, count, dtype, storage)
    grad = torch.randn(size, generator=torch.Generator().manual_seed(99), dtype=dtype)
    expected = two_loop(steps, changes, grad, history.gamma)
    error = (history.direction(grad) - expected).norm() / expected.norm()
    # With 13 pairs in one dimension all are parallel: the recursion itself loses digits.
    assert error < tolerance * (1e3 if size < 13 else 1)


@pytest.mark.parametrize("uses_kernels", [False, True], ids=["torch", "kernels"])
def test_a_masked_direction_uses_restricted_pairs(
    monkeypatch: pytest.MonkeyPatch, uses_kernels: bool
) -> None:
    monkeypatch.setattr(passes, "LARGE", 0 if uses_kernels else 2**60)
    history, steps, changes = pushed(5, 400, 8, torch.float64, torch.float64)
    grad = torch.randn(400, dtype=torch.float64)
    free = torch.arange(400) % 3 > 0
    steps, changes = [s * free for s in steps], [y * free for y in changes]
    gamma = float(steps[-1].dot(changes[-1]) / changes[-1].dot(changes[-1]))
    expected = two_loop(steps, changes, grad * free, gamma)
    found = history.direction(grad, free)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert (found[~free] == 0).all()


def test_restore_undoes_pushes_over_a_full_ring() -> None:
    history, _, _ = pushed(4, 10, 6, torch.float64, torch.float64)
    grad = torch.ones(10, dtype=torch.float64)
    before = history.direction(grad)
    history.begin()
    for k in range(6):
        if k == 3:
            history.clear()
        step = torch.randn(10, dtype=torch.float64)
        history.push(step, 2 * step, float(2 * step.dot(step)), 0.5)
        history.direction(grad)
    history.restore()
    assert torch.equal(history.direction(grad), before)


def test_memory_is_the_documented_formula() -> None:
    like = torch.empty(0)
    assert History(100, 1000, torch.float32, like).nbytes == 2 * 100 * 1000 * 4
    assert History(100, 1000, torch.bfloat16, like).nbytes == 2 * 100 * 1000 * 2
