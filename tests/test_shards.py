"""Sharded parameters are taken part by part: natively looked at, and what is replaced is seen."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import ranks
from rank_programs import shards

from steprule.distributed.regions import Region
from steprule.engines.kernels.address_runner import edges_of
from steprule.formats.random_bits import random_words

CASES: list[tuple[str, dict[str, Any]]] = [
    ("SGD", {"momentum": 0.9}),
    ("Adam", {}),
    ("AdamW", {"amsgrad": True}),
    ("NAdam", {}),
]


@pytest.mark.parametrize("engine", ["fused", "foreach", "eager"])
@pytest.mark.parametrize(("name", "options"), CASES, ids=str)
def test_parts_are_updated_as_plain_tensors_are(
    name: str, options: dict[str, Any], engine: str
) -> None:
    for found in ranks(2).run(shards.natively, name, options, engine):
        assert found["engines"] == {engine}
        assert found["differences"] == [0.0] * len(found["differences"])
        assert found["are_sharded"]
        assert found["is_whole_step"] == (engine == "fused")
        if engine == "fused":  # graphs that saved a parameter are told of every step
            assert min(found["versions"]) >= 6


def test_a_guarded_step_is_a_whole_one_as_well() -> None:
    for found in ranks(2).run(shards.natively, "Adam", {"clip_grad_value": 0.1}, "fused"):
        assert found["is_whole_step"]


@pytest.mark.parametrize("what", ["part", "data", "part of the state", "state"])
def test_what_is_replaced_is_seen(what: str) -> None:
    for found in ranks(2).run(shards.replaced, what):
        assert found["has_changed"]
        assert found["left_alone"], "the part that is no more was written to"
        if "state" in what:  # an average that began anew
            torch.testing.assert_close(found["exp_avg"], 0.1 * found["grad"])


def test_gradients_may_be_spread_otherwise() -> None:
    for found in ranks(2).run(shards.gradients_of_other_kinds):
        assert max(found) == 0.0


def test_state_that_is_sharded_otherwise_is_refused_by_name() -> None:
    for text in ranks(2).run(shards.not_on_shards_of_now):
        assert "'exp_avg' of parameter 0 of group 0 is not sharded as the parameter is" in text


@pytest.mark.parametrize("options", [{}, {"clip_grad_norm": 0.5}], ids=str)
def test_steps_in_the_backward_pass_of_fsdp2(options: dict[str, Any]) -> None:
    # Gradients are means over ranks of means: 1e-12 is their rounding.
    expected = shards.in_backward(0, options, is_one_process=True)
    for found in ranks(2).run(shards.in_backward, options, is_one_process=False):
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options"),
    [("Adam", {}), ("AdamW", {"clip_grad_norm": 1.0}), ("LAMB", {"lr": 0.01})],
    ids=str,
)
def test_nothing_leaks(name: str, options: dict[str, Any]) -> None:
    for objects, grown, steps in ranks(2).run(shards.leaks, name, options, 1000):
        assert objects < steps / 10
        assert grown < 4 << 20, "a kilobyte a step would be 1 MiB; gloo's own buffers come and go"


def test_averages_and_zeros_and_bytes() -> None:
    for found in ranks(2).run(shards.averaged):
        assert all(found["inside"])
        assert all(found["after"])
    assert all(sum(found) == 0.0 for found in ranks(2).run(shards.zeroed))
    assert all(told == real for told, real in ranks(2).run(shards.bytes_here))


REGIONS = st.builds(
    lambda first, length, more: Region(first, length, length + more),
    st.integers(0, 1 << 20),
    st.integers(1, 300),
    st.sampled_from([0, 0, 1, 7, 1000]),
)


@settings(deadline=None)
@given(REGIONS, st.integers(0, 2000), st.sampled_from([128, 512, 8192]))
def test_chunks_end_where_rows_do(region: Region, size: int, chunk: int) -> None:
    edges = edges_of(size, chunk, region)
    assert (edges[0], edges[-1]) == (0, size)
    for start, end in pairwise(edges):
        assert 0 < end - start <= chunk
        # Elements of a chunk follow each other in the whole.
        assert region.number_of(end - 1) - region.number_of(start) == end - 1 - start
        assert region.number_of(start) // chunk == region.number_of(end - 1) // chunk


@settings(deadline=None)
@given(REGIONS, st.integers(1, 500), st.integers(0, (1 << 32) - 1))
def test_random_bits_are_those_of_the_whole(region: Region, count: int, key: int) -> None:
    whole = random_words(key, torch.Size([region.number_of(count - 1) + 1]), torch.device("cpu"))
    part = random_words(key, torch.Size([count]), torch.device("cpu"), region)
    numbers = [region.number_of(i) for i in range(count)]
    assert region.numbers(count, torch.device("cpu")).tolist() == numbers
    torch.testing.assert_close(part, whole[numbers], rtol=0, atol=0)


def test_random_bits_beyond_four_billion_elements() -> None:
    """The 2**32th element has another key: a part that lies across has both."""
    edge = 1 << 32
    region = Region(edge - 3, 8, 8)
    found = random_words(5, torch.Size([8]), torch.device("cpu"), region)
    before = random_words(5, torch.Size([3]), torch.device("cpu"), Region(edge - 3, 3, 3))
    after = random_words(5, torch.Size([5]), torch.device("cpu"), Region(edge, 5, 5))
    torch.testing.assert_close(found, torch.cat([before, after]), rtol=0, atol=0)
    assert not torch.equal(after, random_words(5, torch.Size([5]), torch.device("cpu")))
