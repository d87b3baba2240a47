"""The examples of many processes run as users run them, and say that their results agree."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


def printed(processes: int, name: str, *arguments: str) -> str:
    """What ``torchrun`` of an example prints."""
    command = [sys.executable, "-m", "torch.distributed.run"]
    # A port of its own: jobs on one machine would meet otherwise.
    command += ["--nproc-per-node", str(processes), "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", str(EXAMPLES / name), *arguments]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,  # of a run that hangs
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_distributed_data_parallel() -> None:
    assert "its result equals the single process's" in printed(2, "distributed.py")


@pytest.mark.parametrize("arguments", [(), ("--state-format", "int8")], ids=str)
def test_sharded(arguments: tuple[str, ...]) -> None:
    text = printed(2, "fsdp2.py", *arguments)
    assert "its result equals the single process's" in text
    assert "fused" in text
    assert "eager" not in text
    losses = re.search(r"loss here: ([\d.]+) at first, ([\d.]+) at last", text)
    assert losses
    assert float(losses[2]) < float(losses[1]) / 3  # 0.45 and 0.04


def test_resumed_on_one_and_on_two(tmp_path: Path) -> None:
    name, folder = "resume_elastic.py", str(tmp_path)
    assert "2 processes: saved after 10 steps" in printed(2, name, folder)
    again = printed(2, name, folder)
    assert "resumed on 2: weights differ by at most 0.0e+00" in again
    for text in (again, printed(1, name, folder)):
        assert "continuing equals the uninterrupted run" in text
