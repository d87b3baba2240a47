"""What must hold whatever the optimizer: engines agree, resume, grouping and order are neutral."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from helpers import TOLERANCES, elementwise_optimizers, engines_of, rule_optimizers
from hypothesis import given, settings
from hypothesis import strategies as st

from steprule.rules import OPTIMIZERS

NAMES = rule_optimizers()
ELEMENTWISE = elementwise_optimizers()
# Kernels are compiled on the way, so an example may take long without anything being wrong.
relaxed = settings(deadline=None, max_examples=8, derandomize=True)

shapes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=2, max_size=5)
seeds = st.integers(0, 2**31)
# Which parameters have a gradient at each of some steps.
presence = st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=2, max_size=6)


def make(sizes: list[tuple[int, int]], seed: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator).requires_grad_() for size in sizes]


def step_all(
    optimizers: list[Any], lists: list[list[torch.Tensor]], present: list[list[bool]], seed: int
) -> None:
    """The same gradients for each list of parameters, with the same ones missing."""
    generator = torch.Generator().manual_seed(seed)
    for row in present:
        for i, twins in enumerate(zip(*lists, strict=True)):
            grad = torch.randn(twins[0].shape, generator=generator)
            for twin in twins:
                twin.grad = grad.clone() if row[i % len(row)] else None
        for optimizer in optimizers:
            optimizer.step()


@pytest.mark.parametrize("name", ELEMENTWISE)
@relaxed
@given(sizes=shapes, present=presence, seed=seeds)
def test_engines_agree(
    name: str, sizes: list[tuple[int, int]], present: list[list[bool]], seed: int
) -> None:
    lists = [make(sizes, seed) for _ in engines_of(name)]
    cls = OPTIMIZERS[name.lower()]
    optimizers = [cls(p, engine=e) for p, e in zip(lists, engines_of(name), strict=True)]
    step_all(optimizers, lists, present, seed)
    for other in lists[1:]:
        torch.testing.assert_close(other, lists[0], **TOLERANCES[torch.float32])


@pytest.mark.parametrize("name", NAMES)
@relaxed
@given(sizes=shapes, present=presence, seed=seeds, cut=st.integers(0, 6))
def test_resume_equals_uninterrupted_bit_for_bit(
    name: str, sizes: list[tuple[int, int]], present: list[list[bool]], seed: int, cut: int
) -> None:
    cls = OPTIMIZERS[name.lower()]
    whole, parts = make(sizes, seed), make(sizes, seed)
    uninterrupted, first = cls(whole), cls(parts)
    step_all([uninterrupted, first], [whole, parts], present[:cut], seed)
    second = cls(parts)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    step_all([uninterrupted, second], [whole, parts], present[cut:], seed + 1)
    assert all(map(torch.equal, whole, parts))


@pytest.mark.parametrize("name", NAMES)
@relaxed
@given(sizes=shapes, present=presence, seed=seeds, data=st.data())
def test_any_split_into_groups_and_any_order_gives_the_same(
    name: str, sizes: list[tuple[int, int]], present: list[list[bool]], seed: int, data: Any
) -> None:
    cls = OPTIMIZERS[name.lower()]
    together, apart = make(sizes, seed), make(sizes, seed)
    order = data.draw(st.permutations(range(len(sizes))))
    cuts = data.draw(st.integers(1, len(sizes)))
    groups = [{"params": [apart[i] for i in order[k::cuts]]} for k in range(cuts)]
    optimizers = [cls(together), cls(groups)]
    step_all(optimizers, [together, apart], present, seed)
    assert all(map(torch.equal, together, apart))


@pytest.mark.parametrize("name", NAMES)
def test_parameters_without_a_gradient_are_left_alone(name: str) -> None:
    params = make([(3, 2), (2, 4)], 0)
    optimizer = OPTIMIZERS[name.lower()](params)
    step_all([optimizer], [params], [[True, True]], 0)
    before = params[1].detach().clone()
    state = copy.deepcopy(optimizer.state.get(params[1], {}))
    step_all([optimizer], [params], [[True, False]] * 3, 1)
    assert torch.equal(params[1], before)
    for key, value in state.items():
        assert torch.equal(optimizer.state[params[1]][key], value)
