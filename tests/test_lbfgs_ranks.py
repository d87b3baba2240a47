"""LBFGS on sharded parameters: one process's numbers, the same decisions on every rank."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import ranks
from rank_programs import lbfgs

# The sums of a dot product are taken in another order, which differs by some 1e-16 of what is
# added; 8 to 32 iterations on a network make at most 2e-13 of that here.
CLOSE = {torch.float64: 1e-10, torch.float32: 1e-3}


@cache
def on_two() -> list[dict[str, Any]]:
    return ranks(2).run(lbfgs.run_all, seconds=120)


@cache
def on_four() -> list[dict[str, Any]]:
    return ranks(4).run(lbfgs.run_on_four, seconds=120)


def found_of(name: str) -> tuple[lbfgs.Case, list[dict[str, Any]]]:
    """Return a case, and what each rank found."""
    cases = lbfgs.cases()
    if name in cases:
        return cases[name], [one[name] for one in on_two()]
    return lbfgs.cases_on_four()[name], [one[name] for one in on_four()]


NAMES = [*lbfgs.cases(), *lbfgs.cases_on_four()]


@pytest.mark.parametrize("name", NAMES)
def test_sharded_parameters_move_as_whole_ones(name: str) -> None:
    case, found = found_of(name)
    for one in found:
        together, alone = one["ranks"], one["alone"]
        for ours, theirs in zip(together["results"], alone["results"], strict=True):
            assert (ours.reason, ours.iterations, ours.evaluations) == (
                (theirs.reason, theirs.iterations, theirs.evaluations)
            )
            assert ours.loss == pytest.approx(theirs.loss, rel=CLOSE[case.dtype])
        for ours, theirs in zip(together["params"], alone["params"], strict=True):
            close = CLOSE[case.dtype] * float(theirs.abs().max())
            torch.testing.assert_close(ours, theirs, rtol=0, atol=close)


@pytest.mark.parametrize("name", NAMES)
def test_every_rank_has_the_same_bits(name: str) -> None:
    """Of what decides, and of parameters that every rank has whole."""
    _, (first, *others) = found_of(name)
    for other in others:
        assert other["ranks"]["results"] == first["ranks"]["results"]
        assert other["ranks"]["sent"] == first["ranks"]["sent"]
        for ours, theirs in zip(
            other["ranks"]["replicated"], first["ranks"]["replicated"], strict=True
        ):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", [name for name in NAMES if ", " in name or name == "few pairs"])
def test_messages_are_one_an_iteration_and_one_an_evaluation(name: str) -> None:
    """And the first step's length; backtracking asks for each direction's reach before it tries."""
    case, found = found_of(name)
    together, alone = found[0]["ranks"], found[0]["alone"]
    assert alone["sent"] == []
    iterations = sum(result.iterations for result in together["results"])
    evaluations = sum(result.evaluations for result in together["results"])
    more = iterations if case.options.get("line_search_fn") == "backtracking" else 0
    if "fixed" in name:  # where steps are halved back from what is not finite
        more += 1
    assert len(together["sent"]) == iterations + evaluations + 1 + more
    pairs = min(case.options.get("history_size", 100), iterations)
    assert max(together["sent"]) <= 4 * pairs + 7


def test_a_rank_without_a_gradient_takes_part() -> None:
    for found in ranks(2).run(lbfgs.run_missing):
        (ours, params), (theirs, expected) = found["ranks"], found["alone"]
        assert (ours.reason, ours.evaluations) == (theirs.reason, theirs.evaluations)
        torch.testing.assert_close(params, expected, rtol=1e-10, atol=1e-10)


def test_a_closure_that_raises_leaves_everything_as_it_was() -> None:
    assert all(ranks(2).run(lbfgs.failing_closure))


def test_a_resumed_run_is_the_same_and_any_number_of_ranks_may_load_it(tmp_path: Path) -> None:
    """Through torch.distributed.checkpoint: on as many bit for bit, on others but for rounding."""
    folder = str(tmp_path / "checkpoint")
    found = ranks(2).run(lbfgs.run_resumed, folder)
    for one in found:
        assert one["is_same"]
        assert all(ours == theirs for ours, theirs in one["results"])
        assert one["kinds"]["old_dirs"] == ("DTensor", (4, 5, 2))
    values, expected = found[0]["at"], found[0]["after"]
    for size, shape in ((1, (1,)), (2, (2,)), (4, (2, 2))):
        for loaded in ranks(size).run(lbfgs.run_loaded, folder, values, shape):
            for params, iterations in loaded.values():  # nested and flattened
                assert iterations == 10
                close = 0.0 if size == 2 else 1e-10
                torch.testing.assert_close(params, expected, rtol=0, atol=close)


def test_states_go_from_one_process_to_many_and_back() -> None:
    for found in ranks(2).run(lbfgs.run_forms):
        expected, iterations, *_ = found["alone"]
        for name, is_parted, entries in (("to ranks", True, 4), ("from ranks", False, 1)):
            params, *rest = found[name]
            assert rest == [iterations, is_parted, entries]
            torch.testing.assert_close(params, expected, rtol=0, atol=1e-10)


def test_what_cannot_be_done_is_refused_by_name() -> None:
    for found in ranks(2).run(lbfgs.run_refused):
        assert "'weight' has the placements (Partial(sum),)" in found["partial"]
        assert "wrap it, DTensor.from_local" in found["plain gradient"]
    for text in ranks(4).run(lbfgs.run_overlapping):
        assert "on meshes of the same ranks" in text
