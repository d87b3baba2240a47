"""The article's scheduler examples run, and print what the article says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
TABLE = """\
epoch:  0 lr:  [0.0, 0.1]
epoch:  1 lr:  [0.0, 0.095]
epoch:  2 lr:  [0.0, 0.09025]
epoch:  3 lr:  [0.001, 0.0857375]
epoch:  4 lr:  [0.001, 0.081450625]
epoch:  5 lr:  [0.001, 0.07737809374999999]
epoch:  6 lr:  [0.002, 0.07350918906249998]
epoch:  7 lr:  [0.002, 0.06983372960937498]
epoch:  8 lr:  [0.002, 0.06634204312890622]
epoch:  9 lr:  [0.003, 0.0630249409724609]
"""


def output(name: str) -> str:
    """What the example prints, run as a user runs it."""
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / name)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"MPLBACKEND": "Agg"},
    )
    assert result.returncode == 0, result.stderr
    assert "lr_scheduler" not in result.stderr
    return result.stdout


def test_the_lambda_table_comes_out_to_the_last_digit() -> None:
    assert output("article_lambda_lr.py").startswith(TABLE)


def test_the_comments_beside_step_and_multistep_hold() -> None:
    stairs, milestones, exponential = output("article_decay.py").strip().split("\n\n")
    for line in stairs.splitlines():
        epoch, lr = line.split()
        assert float(lr) == pytest.approx(0.05 * 0.1 ** (int(epoch) // 30), rel=1e-12)
    for line in milestones.splitlines():
        epoch, lr = re.split(r" lr=", line)
        expected = 0.05 if int(epoch) < 30 else 0.005 if int(epoch) < 80 else 0.0005
        assert lr == f"{expected:.6f}"
    for line in exponential.splitlines():
        epoch, lr = re.split(r" lr=", line)
        assert lr == f"{0.05 * 0.9 ** int(epoch):.6f}"


def test_the_exponential_example_prints_one_lr_three_times() -> None:
    lines = output("article_exponential_lr.py").splitlines()
    assert lines[:2] == ["learning rate: 0.001", "weight decay: 0"]
    for start in range(2, len(lines), 4):
        _, told, held, formula = lines[start : start + 4]
        assert float(told.split()[-1]) == float(held.split()[-1])
        assert float(told.split()[-1]) == pytest.approx(float(formula), rel=1e-12)


def test_the_plateau_example_prints_the_articles_line() -> None:
    assert output("article_plateau.py") == (
        "Epoch    14: reducing learning rate of group 0 to 1.0000e-02.\n"
        "Epoch    25: reducing learning rate of group 0 to 1.0000e-03.\n"
    )


def test_todays_order_gives_the_same_values_epoch_by_epoch() -> None:
    printed = output("schedules_todays_order.py").splitlines()
    assert "StepLR 30 lr=0.005000" in printed
    assert "StepLR 20 lr=0.050000" in printed
    assert "MultiStepLR 80 lr=0.000500" in printed
