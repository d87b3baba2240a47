"""Training on several processes is training on one: every optimizer, however its parameters lie.

Each test is a batch of runs in processes that are up already (``processes.py``), beside the same
runs here. Of *given* gradients nothing but the step can differ: what rules on elements make of them
must be the same bits. Where sums are taken in another order (a rule's reductions, gradients that
ranks average), float64 numbers differ by some roundings, and by what follows from these.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import (
    Case,
    elementwise_optimizers,
    flag_cases,
    has_reductions,
    rule_optimizers,
    torch_cases,
)
from processes import ranks
from rank_programs import training
from reference_runs import RUNS

NAMES = rule_optimizers()
ON_ELEMENTS = [name for name in elementwise_optimizers() if not has_reductions(name)]

# A sum over a few dozen elements in another order is off by a few roundings of 1.1e-16, and so are
# gradients averaged over ranks. A step makes no more of it than its own length allows (at most 0.1
# here): after five steps 1e-15 was the most that was seen. A hundred times that.
ROUNDING = {"rtol": 1e-13, "atol": 1e-13}
# Prodigy takes differences of weights that have moved by 3e-8 after a first step (d0 lr 3): of
# these a rounding is 1e-8, which its estimate of d, and so the later steps, are off by.
OF_DIFFERENCES = {"rtol": 1e-6, "atol": 1e-7}
# Shampoo's inverse roots have eps = 1e-4 for an eigenvalue of 0, of which a rounding of 1e-16 is
# 1e-12; eigenvectors turn by as much where eigenvalues are as near.
OF_ROOTS = {"rtol": 1e-11, "atol": 1e-11}


def tolerance_of(name: str) -> dict[str, float]:
    rough = {"Prodigy": OF_DIFFERENCES, "Shampoo": OF_ROOTS, "SOAP": OF_ROOTS}
    return rough.get(name, ROUNDING)


def cases_of(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The defaults, torch's table, each flag, and the run for which there is a reference."""
    found = [Case(name, {}), *torch_cases(name), *flag_cases(name)]
    if name in RUNS:
        found.append(Case(name, RUNS[name]))
    return [(name, options) for options in {repr(c.options): c.options for c in found}.values()]


def check_ranks_agree(found: list[list[Any]], described: list[str]) -> None:
    """Every rank has the same, bit for bit; none has raised."""
    first = found[0]
    for rank, of_rank in enumerate(found):
        for case, here, there in zip(described, of_rank, first, strict=True):
            assert not isinstance(here, str), f"rank {rank}, {case}:\n{here}"
            assert here["seen"] == there["seen"], f"rank {rank}, {case}"
            for i, (mine, other) in enumerate(zip(here["params"], there["params"], strict=True)):
                same = torch.equal(mine, other) or _both_nan(mine, other)
                assert same, f"ranks 0 and {rank} differ in parameter {i}: {case}"


def _both_nan(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))


def check_is(
    found: dict[str, Any], expected: dict[str, Any], case: str, **tolerance: float
) -> None:
    """Parameters, state, and what the guards saw, are those of one process.

    Bit for bit without a tolerance, but for the norm: that is a sum.
    """
    tolerance = tolerance or {"rtol": 0.0, "atol": 0.0}

    def close(a: Any, b: Any, what: str, **within: float) -> None:
        message = lambda text: f"{what}, {case}: {text}"  # noqa: E731
        torch.testing.assert_close(a, b, **(within or tolerance), equal_nan=True, msg=message)

    for i, (a, b) in enumerate(zip(found["params"], expected["params"], strict=True)):
        close(a, b, f"parameter {i}")
    for i, (a, b) in enumerate(zip(found["state"], expected["state"], strict=True)):
        assert a.keys() == b.keys(), f"state of parameter {i}, {case}"
        for key, value in a.items():
            # Scales of blocks may have an axis more where they are sharded.
            close(value.reshape(b[key].shape), b[key], f"{key!r} of parameter {i}")
    seen, other = found["seen"], expected["seen"]
    assert (seen.skipped, seen.skipped_so_far) == (other.skipped, other.skipped_so_far), case
    for name in ("grad_norm", "clip_factor", "group_norms", "group_clip_factors"):
        mine, theirs = getattr(seen, name), getattr(other, name)
        close(_numbers(mine), _numbers(theirs), name, rtol=1e-12, atol=1e-13)


def _numbers(found: Any) -> list[float]:
    listed = found if isinstance(found, tuple) else (found,)
    return [-1.0 if number is None else number for number in listed]


def check_given(
    world: int, names: list[str], cases: list[tuple[str, dict[str, Any]]], **more: Any
) -> None:
    """Runs of given gradients in layouts, against the same here."""
    laid = training.layouts(world)
    found = ranks(world).run(training.all_given, names, cases, **more)
    described = [f"{layout}: {case}" for layout in names for case in cases]
    check_ranks_agree(found, described)
    runs = [(layout, case) for layout in names for case in cases]
    for (layout, case), of_ranks, text in zip(runs, found[0], described, strict=True):
        expected = training.given(laid[layout], *case, is_one_process=True, **more)
        is_same = case[0] in ON_ELEMENTS and "clip_grad_norm" not in case[1]
        check_is(of_ranks, expected, text, **({} if is_same else tolerance_of(case[0])))


@pytest.mark.parametrize("name", NAMES)
def test_given_gradients_on_two_ranks(name: str) -> None:
    cases, thorough = cases_of(name), ["uneven and empty", "tensor parallel"]
    check_given(2, thorough, cases)
    others = [layout for layout in training.TWO_RANKS if layout not in thorough]
    check_given(2, others, [cases[0], cases[-1]])


@pytest.mark.parametrize("name", NAMES)
def test_given_gradients_on_a_grid_of_four(name: str) -> None:
    check_given(4, list(training.FOUR_RANKS), [cases_of(name)[-1]])


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_every_engine_takes_shards(engine: str) -> None:
    names = ("SGD", "AdamW", "LAMB", "Adafactor", "Prodigy")
    check_given(2, list(training.TWO_RANKS), [(name, {"engine": engine}) for name in names])


@pytest.mark.parametrize("name", ["AdamW", "SGD", "NAdam", "LAMB", "Prodigy"])
def test_gradients_that_come_and_go(name: str) -> None:
    check_given(
        2, ["uneven and empty", "several meshes"], [(name, {"lr": 0.01})], grads="now and then"
    )


GUARDS: list[dict[str, Any]] = [
    {"clip_grad_norm": 0.5},
    {"clip_grad_norm": torch.inf},
    {"clip_grad_norm": 0.5, "clip_grad_norm_over": "group"},
    {"clip_grad_norm": 0.5, "clip_grad_norm_over": "param"},
    {"clip_grad_value": 0.1},
    {"on_nonfinite": "skip"},
    {"on_nonfinite": "raise"},
    {"ema_decay": 0.9},
    {"schedule": True},
    {
        "clip_grad_norm": 0.5,
        "clip_grad_value": 0.2,
        "on_nonfinite": "skip",
        "ema_decay": 0.9,
        "schedule": True,
    },
]


@pytest.mark.parametrize("name", ["AdamW", "SGD", "LAMB", "Adafactor", "Muon"])
def test_guards_see_the_gradients_of_all_ranks(name: str) -> None:
    check_given(2, list(training.TWO_RANKS), [(name, options) for options in GUARDS], groups=True)


def test_caution_counts_the_elements_of_all_ranks() -> None:
    names = ("AdamW", "SGD", "LAMB", "Prodigy", "Adafactor", "Muon")
    options = {"cautious": True, "lr": 0.01}
    check_given(2, ["uneven and empty"], [(name, options) for name in names])
    decayed = {"weight_decay": 0.1, "cautious_weight_decay": True, "peak_lr": 0.1}
    check_given(2, list(training.TWO_RANKS), [("AdamW", {**options, **decayed})])


def test_guards_on_a_grid_of_four() -> None:
    check_given(
        4, list(training.FOUR_RANKS), [("AdamW", options) for options in GUARDS], groups=True
    )


def test_what_is_infinite_on_one_rank_is_skipped_on_all() -> None:
    options = [
        {"on_nonfinite": "skip"},
        {"on_nonfinite": "skip", "clip_grad_norm": 0.5},
        {"on_nonfinite": "skip", "clip_grad_norm": 0.5, "clip_grad_norm_over": "group"},
    ]
    cases = [(name, each) for name in ("AdamW", "LAMB") for each in options]
    check_given(2, list(training.TWO_RANKS), cases, groups=True, grads="not finite once")
    check_given(4, list(training.FOUR_RANKS), cases, groups=True, grads="not finite once")


def test_no_gradient_anywhere_is_no_step() -> None:
    cases = [(name, {"clip_grad_norm": 0.5}) for name in ("AdamW", "LAMB", "Prodigy")]
    check_given(2, list(training.TWO_RANKS), cases, grads="never")


STRATEGIES = [
    (2, "DDP", "even"),
    (2, "FSDP2", "even"),
    (2, "FSDP2", "uneven"),
    (2, "TP", "even"),
    (4, "HSDP", "uneven"),
    (4, "FSDP2 x TP", "even"),
]


def check_trained(
    world: int, strategy: str, kind: str, cases: list[tuple[str, dict[str, Any]]], **more: Any
) -> None:
    """Models under a strategy, against one process that has all examples."""
    widths = training.WIDTHS[kind]
    found = ranks(world).run(training.all_trained, strategy, widths, cases, **more)
    described = [f"{strategy}, {kind}: {case}" for case in cases]
    check_ranks_agree(found, described)
    for case, of_ranks, text in zip(cases, found[0], described, strict=True):
        expected = training.trained(None, widths, *case, **more)
        check_is(of_ranks, expected, text, **tolerance_of(case[0]))


# Of an average of gradients, rounded otherwise, those of SOAP's eigenvectors are others of which
# the first gradient has nothing: only sides that it has all of may have some.
WELL_DEFINED = {"even": {"max_precond_dim": 6}, "uneven": {"max_precond_dim": 1}}


@pytest.mark.parametrize(("world", "strategy", "kind"), STRATEGIES)
def test_a_model_trains_as_on_one_process(world: int, strategy: str, kind: str) -> None:
    cases = [case for name in NAMES for case in (cases_of(name)[0], cases_of(name)[-1])]
    cases = [
        (name, {**options, **(WELL_DEFINED[kind] if name == "SOAP" else {})})
        for name, options in cases
    ]
    check_trained(world, strategy, kind, cases)


@pytest.mark.parametrize(("world", "strategy", "kind"), STRATEGIES)
def test_a_guarded_model_trains_as_on_one_process(world: int, strategy: str, kind: str) -> None:
    guards = {"clip_grad_norm": 0.1, "on_nonfinite": "skip", "ema_decay": 0.9, "schedule": True}
    check_trained(world, strategy, kind, [(name, guards) for name in ("AdamW", "SGD", "LAMB")])


@pytest.mark.parametrize(("world", "strategy", "kind"), STRATEGIES)
def test_accumulated_gradients_are_told_once(world: int, strategy: str, kind: str) -> None:
    cases = [("AdamW", {"clip_grad_norm": 0.1}), ("SGD", {"lr": 0.1, "momentum": 0.9})]
    check_trained(world, strategy, kind, cases, accumulated=2)


@pytest.mark.parametrize("kind", ["even", "uneven"])
def test_steps_in_the_backward_pass_of_shards(kind: str) -> None:
    cases = [(name, {"lr": 0.01}) for name in ("AdamW", "SGD", "LAMB", "Adafactor")]
    check_trained(2, "FSDP2", kind, cases, in_backward=True)


def test_lbfgs_beside_distributed_data_parallel() -> None:
    # A few iterations: a hundred, on other examples every twenty, make much of a rounding.
    few: dict[str, Any] = {"max_iter": 3, "lr": 0.5}
    cases = [("LBFGS", few), ("LBFGS", {**few, "line_search_fn": "strong_wolfe"})]
    check_trained(2, "DDP", "even", cases, steps=2)


def test_sparse_gradients_beside_distributed_data_parallel() -> None:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("SparseAdam", {}),
        ("SparseAdam", {"lr": 0.1, "maximize": True}),
        ("SGD", {"lr": 0.1}),
        ("Adagrad", {"lr": 0.1, "clip_grad_norm": 0.1}),
    ]
    found = ranks(2).run(training.all_with_sparse_gradients, "DDP", cases)
    described = list(map(str, cases))
    check_ranks_agree(found, described)
    for case, of_ranks, text in zip(cases, found[0], described, strict=True):
        expected = training.with_sparse_gradients(None, *case)
        check_is(of_ranks, expected, text, **ROUNDING)
