"""State in 8 and 4 bits and weights in 16, sharded: the bits that one process has.

Rounding at random takes its bits from the element's place in the whole parameter, and blocks that
share a scale lie within a shard: so that neither codes, scales nor weights know of the sharding.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from processes import ranks
from rank_programs import training
from test_ranks import ON_ELEMENTS, check_given, check_ranks_agree

SMALL = {"state_format_min_size": 1}
FORMATS: list[dict[str, Any]] = [
    {"state_format": "float32"},
    {"state_format": "bfloat16"},
    {"state_format": "int8"},
    {"state_format": "int4"},
    {"state_format": "int8", "rounding_seed": 7, "clip_grad_value": 0.1},
    {"ema_decay": 0.9, "ema_format": "bfloat16"},
    {"state_format": "int8", "ema_decay": 0.9, "ema_format": "int8"},
]
ROUNDINGS: list[dict[str, Any]] = [
    {"param_rounding": "stochastic"},
    {"param_rounding": "kahan"},
    {"param_rounding": "split", "state_format": "float32"},
    {"param_rounding": "split24", "state_format": "bfloat16"},
]
#: Those without blocks, which may be cut anywhere.
ANYWHERE = [
    "even",
    "uneven and empty",
    "tensor parallel",
    "tensor parallel, uneven",
    "replicated",
    "several meshes",
    "plain among them",
]


@pytest.mark.parametrize("options", FORMATS, ids=lambda x: ",".join(map(str, x.values())))
def test_state_in_formats_is_that_of_one_process(options: dict[str, Any]) -> None:
    cases = [
        ("AdamW", {**options, **SMALL}),
        ("AdamW", {**options, "lr": 0.1}),
        ("SGD", {**options, **SMALL, "lr": 0.1, "momentum": 0.9, "nesterov": True}),
    ]
    check_given(2, list(training.IN_BLOCKS), cases, dtype=torch.float32)


@pytest.mark.parametrize("options", ROUNDINGS, ids=lambda x: ",".join(map(str, x.values())))
def test_weights_of_16_bits_are_those_of_one_process(options: dict[str, Any]) -> None:
    cases = [
        ("AdamW", {**options, **SMALL}),
        ("SGD", {**options, **SMALL, "lr": 0.1, "momentum": 0.9}),
    ]
    check_given(2, list(training.IN_BLOCKS), cases, dtype=torch.bfloat16)


@pytest.mark.parametrize("engine", ["eager", "foreach"])
@pytest.mark.parametrize("options", ROUNDINGS, ids=lambda x: ",".join(map(str, x.values())))
def test_weights_of_16_bits_may_be_cut_anywhere(options: dict[str, Any], engine: str) -> None:
    # On one engine: that of kernels leaves what is cut into short rows to another, whose float32
    # numbers may be otherwise in the last bit, and then rounded to other weights.
    cases = [
        ("AdamW", {**options, **SMALL, "engine": engine}),
        ("SGD", {**options, **SMALL, "engine": engine, "lr": 0.1, "momentum": 0.9}),
    ]
    check_given(2, ANYWHERE, cases, dtype=torch.bfloat16)


def test_both_at_once() -> None:
    cases = [
        ("AdamW", {"state_format": "int8", "param_rounding": "split", **SMALL}),
        ("AdamW", {"state_format": "int4", "param_rounding": "split24", **SMALL}),
        ("AdamW", {"state_format": "int4", "param_rounding": "stochastic", **SMALL}),
    ]
    check_given(2, list(training.IN_BLOCKS), cases, dtype=torch.bfloat16)


@pytest.mark.parametrize("engine", ["eager", "foreach", "fused"])
def test_every_engine_rounds_by_the_place_in_the_whole(engine: str) -> None:
    options = {"engine": engine, **SMALL}
    cases = [
        ("AdamW", {"state_format": "int8", "param_rounding": "stochastic", **options}),
        ("AdamW", {"state_format": "int4", **options}),
        ("AdamW", {"state_format": "bfloat16", "param_rounding": "kahan", **options}),
    ]
    check_given(2, list(training.IN_BLOCKS), cases, dtype=torch.bfloat16)


def test_every_rule_on_elements_in_8_bits() -> None:
    options = {"state_format": "int8", "lr": 0.01, **SMALL}
    check_given(
        2, list(training.IN_BLOCKS), [(name, options) for name in ON_ELEMENTS], dtype=torch.float32
    )


def test_on_a_grid_of_four() -> None:
    some = (*ROUNDINGS, FORMATS[1])
    cases = [("AdamW", {**options, **SMALL, "engine": "foreach"}) for options in some]
    check_given(4, list(training.FOUR_RANKS), cases, dtype=torch.bfloat16)


def test_state_in_formats_beside_square_matrices() -> None:
    """What is gathered is stored where it was: also its random bits are of the whole."""
    small = {"state_format": "int4", **SMALL, "precondition_frequency": 2}
    cases = [
        ("SOAP", {**small, "max_precond_dim": 64}),
        ("Shampoo", {**small, "max_preconditioner_dim": 64}),
    ]
    layouts = ["blocks", "blocks, uneven and empty"]
    found = ranks(2).run(training.all_given, layouts, cases, dtype=torch.float32)
    runs = [(layout, case) for layout in layouts for case in cases]
    check_ranks_agree(found, list(map(str, runs)))
    for (layout, case), of_ranks in zip(runs, found[0], strict=True):
        laid = training.layouts(2)[layout]
        expected = training.given(laid, *case, is_one_process=True, dtype=torch.float32)
        # Products are off by roundings, and a code may flip. A step is 3e-3 long; with random bits
        # of other elements they came to be 2e-2 apart.
        pairs = zip(of_ranks["params"], expected["params"], strict=True)
        assert all((a - b).abs().max() < 1e-3 for a, b in pairs), (layout, case)
