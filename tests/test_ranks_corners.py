"""Rules that are taken apart in odd ways, and ranks that do not see the same."""

from __future__ import annotations

import pytest
import torch
from processes import ranks
from rank_programs import corners


@pytest.mark.parametrize("engine", ["foreach", "eager"])
def test_sums_of_sums_along_axes(engine: str) -> None:
    for found in ranks(2).run(corners.odd_rules, engine):
        # Float64 sums in another order.
        assert all(difference < 1e-12 for difference in found.values()), found


@pytest.mark.parametrize("what", ["Muon", "LAMB on foreach", "combined"])
def test_what_one_rank_refuses_changes_nothing(what: str) -> None:
    first, second = ranks(2).run(corners.refused, what)
    assert first["is_unchanged"]
    assert second["is_unchanged"]
    if what == "Muon":
        for found in (first, second):
            assert "parameter 0 of group 0 has a gradient on 1 of 2 ranks" in found["error"]
    else:
        assert "the gradient of parameter 0 of group 0 is a plain tensor" in first["error"]
        assert "another process of this job refused" in second["error"]
    for one, other in zip(first["params"], second["params"], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_what_some_ranks_alone_see_is_skipped_by_all() -> None:
    expected = (False, True, False)
    assert ranks(4).run(corners.skipped_alike, "grid") == [expected] * 4
    assert ranks(2).run(corners.skipped_alike, "plain") == [expected] * 2


def test_replicas_refuse_together() -> None:
    found = ranks(4).run(corners.replicas_refuse)
    assert "another process" not in found[0][0]
    assert found[0][0]
    assert all("another process" in error for error, _ in found[1:])
    assert all(is_unchanged for _, is_unchanged in found)


def test_explain_sends_nothing() -> None:
    assert ranks(2).run(corners.explained_on_one) == [True, True]


def test_a_frozen_parameter_costs_nothing() -> None:
    assert ranks(2).run(corners.with_a_frozen_one) == [True, True]
