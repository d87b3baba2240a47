"""Ranks that do not do alike: nobody waits for ever, and nothing is changed by half.

A rank that raises in its step tells the others in the vector that they wait for; one without
gradients still takes part; one that is killed ends the job, and what was saved before loads.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import HERE, ranks
from rank_programs import refusals
from test_ranks import ROUNDING, check_is

import steprule

CLIPPED = {"clip_grad_norm": 0.5}
# What ranks can tell each other in.
TOLD: list[tuple[str, dict[str, Any]]] = [
    ("AdamW", CLIPPED),
    ("SGD", {"lr": 0.1, "momentum": 0.9, "on_nonfinite": "skip"}),
    ("LAMB", {"lr": 0.01}),
    ("LAMB", {"lr": 0.01, **CLIPPED}),
]


@pytest.mark.parametrize("how", ["option", "state"])
@pytest.mark.parametrize(("name", "options"), TOLD, ids=str)
@pytest.mark.parametrize("at", [0, 2])
def test_a_rank_that_refuses_stops_the_others(
    name: str, options: dict[str, Any], how: str, at: int
) -> None:
    if at == 0 and how == "state":
        at = 1  # there is none before the first step
    first, second = ranks(2).run(refusals.one_refuses, name, options, how, at, seconds=20)
    assert first["error"]
    assert "another process" not in first["error"], "it is this rank's own"
    assert "another process of this job refused the step" in second["error"]
    assert first["is_unchanged"]
    assert second["is_unchanged"]
    expected = refusals.usual(name, options, 4)
    for found in (first, second):
        for a, b in zip(found["params"], expected, strict=True):
            torch.testing.assert_close(a, b, **ROUNDING)


@pytest.mark.parametrize("which", [(0,), (0, 1, 2)], ids=["of one", "of all"])
@pytest.mark.parametrize(
    "options",
    [CLIPPED, {"on_nonfinite": "skip"}, {**CLIPPED, "clip_grad_norm_over": "group"}],
    ids=lambda options: ",".join(options),
)
def test_a_rank_without_gradients_takes_part(
    options: dict[str, Any], which: tuple[int, ...]
) -> None:
    options = {"lr": 0.1, **options}
    first, second = ranks(2).run(refusals.one_has_no_gradients, "SGD", options, which, seconds=20)
    assert first["seen"] == second["seen"]
    expected = refusals.one_process_with_zeros("SGD", options, which)
    for found in (first, second):
        check_is({**found, "state": []}, {**expected, "state": []}, str(which), **ROUNDING)


@pytest.mark.parametrize("name", ["LAMB", "Prodigy", "StableAdamW", "Adafactor"])
def test_a_rank_without_gradients_is_not_waited_for(name: str) -> None:
    first, second = ranks(2).run(
        refusals.one_has_no_gradients, name, CLIPPED, (0, 1, 2), seconds=20
    )
    assert first["seen"] == second["seen"]
    assert all(param.isfinite().all() for param in first["params"])


@pytest.mark.parametrize("name", ["AdamW", "LAMB"])
def test_what_is_infinite_on_one_rank_is_an_error_on_all(name: str) -> None:
    options = {"on_nonfinite": "raise", "lr": 0.01}
    found = ranks(2).run(refusals.raised_alike, name, options, seconds=20)
    expected = refusals.usual(name, options, 2)
    for error, is_unchanged, params in found:
        assert "not finite" in error
        assert is_unchanged
        for a, b in zip(params, expected, strict=True):
            torch.testing.assert_close(a, b, **ROUNDING)


def test_a_rank_that_is_killed_ends_the_job(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    script = HERE / "rank_programs" / "killed.py"
    done = subprocess.run(
        [*command, "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0", script, tmp_path],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # of a run that hangs
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode != 0
    assert "step 3 done" in done.stdout, done.stderr
    assert "step 4 done" not in done.stdout
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    param = torch.nn.Parameter(torch.zeros(4, 6))
    optimizer = steprule.AdamW([param], clip_grad_norm=1.0)
    optimizer.load_state_dict(saved["optimizer"])
    assert optimizer.state[param]["step"] == 3


def test_who_waits_for_a_killed_rank_gets_an_error(tmp_path: Path) -> None:
    """Without a launcher that ends the others."""
    script = HERE / "rank_programs" / "killed.py"
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "OMP_NUM_THREADS": "1",
        "STORE": str(tmp_path / "store"),
    }
    both = [
        subprocess.Popen(
            [sys.executable, script, tmp_path],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**environment, "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        out, err = both[0].communicate(timeout=300)
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert "step 3 done" in out, err
    assert both[0].returncode == 1
    assert "Error" in err
