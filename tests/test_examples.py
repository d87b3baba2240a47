"""The examples run as users run them, and what they print shows that they have learned.

Each is cut short by its own options. The bounds are far from what the short runs reach and farther
from what chance gives, so that another processor's roundings do not matter.
"""

from __future__ import annotations

import os
import re
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = (
    "image_classifier",
    "language_model",
    "fine_tuning",
    "gan",
    "pinn_lbfgs",
    "own_rule",
    "eight_bit",
    "fsdp2",
)
# One thread each: tensors are small, and threads that wait for each other cost more than they do.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "STEPRULE_QUIET": "1"}
SHORT_TEXT = ("--steps", "30", "--batch-size", "4", "--save-every", "5")


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments]


def printed(name: str, *arguments: str) -> str:
    """What an example prints; it must end well, and warn of nothing."""
    done = subprocess.run(
        command(name, *arguments),
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # of a run that hangs; these take seconds
        env=ENVIRONMENT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def number(pattern: str, text: str) -> float:
    """The number that stands where the pattern has a group."""
    found = re.search(pattern, text)
    assert found, f"{pattern!r} is not in:\n{text}"
    return float(found[1])


def test_image_classifier(tmp_path: Path) -> None:
    text = printed("image_classifier", "--epochs", "3", "--out", str(tmp_path / "weights"))
    # Chance is 0.1; ten epochs reach 0.96.
    assert number(r"test accuracy: ([\d.]+)", text) > 0.75
    assert "no_decay" in text
    assert {*load_file(tmp_path / "weights")} > {"model/state_dict/0.weight"}


def test_language_model() -> None:
    text = printed("language_model", "--steps", "50", "--batch-size", "8", "--lr", "0.005")
    # Below this only what came before a character can bring it.
    alone = number(r"by frequencies alone: ([\d.]+)", text)
    assert number(r"test bits a character: ([\d.]+)", text) < alone - 0.3


def beginning(name: str) -> str:
    """What part of a checkpoint a tensor belongs to."""
    parts = name.split("/")
    return "/".join(parts[:2]) if parts[0] == "random_state" else parts[0]


def test_a_language_model_that_is_killed_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = printed("language_model", *SHORT_TEXT, "--out", str(tmp_path / "whole"))

    arguments = (*SHORT_TEXT, "--out", str(tmp_path / "killed"))
    with subprocess.Popen(
        command("language_model", *arguments), stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("saved") and line.endswith("at step 5\n"):
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL

    resumed = printed("language_model", *arguments, "--resume")
    assert 5 <= number(r"resumed .* at step (\d+)", resumed) < 30
    one, other = load_file(tmp_path / "whole"), load_file(tmp_path / "killed")
    assert one.keys() == other.keys()
    # NumPy's and Python's generators, which nothing here draws from, start differently each time.
    used = [name for name in one if not re.match("random_state/(numpy|python)", name)]
    assert {"random_state/torch", "optimizer", "model"} <= {*map(beginning, used)}
    assert [name for name in used if not torch.equal(one[name], other[name])] == []
    assert resumed.splitlines()[-3:] == whole.splitlines()[-3:]


def test_resuming_needs_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        in_this_process("language_model", "--resume")
    assert "--out" in capsys.readouterr().err


def test_a_run_is_made_longer_by_the_schedule_that_is_asked_for(tmp_path: Path) -> None:
    """By the saved one, whose end it has reached, all further steps would have an lr of 0."""
    arguments = ("--batch-size", "2", "--save-every", "1", "--out", str(tmp_path / "run"))
    assert "there is no" in printed("language_model", "--steps", "2", *arguments, "--resume")
    text = printed("language_model", "--steps", "4", *arguments, "--resume")
    assert "at step 2 of 4, lr: cosine(0.003, 0, steps=4)" in text
    assert number(r"step    3: lr ([\d.e+-]+)", text) > 1e-4


REFUSED = [
    ("image_classifier", "--batch-size", "0", "argument --batch-size: must be at least 1, got 0"),
    ("image_classifier", "--out", "/nonexistent/x", "argument --out: there is no folder"),
    ("language_model", "--save-every", "0", "argument --save-every"),
    ("language_model", "--accumulate", "0", "argument --accumulate"),
    ("gan", "--steps", "-1", "argument --steps"),
    ("pinn_lbfgs", "--points", "0", "argument --points"),
    ("fine_tuning", "--shots", "0", "argument --shots"),
    ("eight_bit", "--epochs", "many", "argument --epochs"),
    ("own_rule", "--alpha", "-1", "--alpha: must be above 0"),
]


@pytest.mark.parametrize(("name", "option", "value", "says"), REFUSED)
def test_bad_values_are_refused_by_the_options_name(
    name: str, option: str, value: str, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        in_this_process(name, option, value)
    assert says in capsys.readouterr().err


def test_fine_tuning(tmp_path: Path) -> None:
    out = tmp_path / "tuned"
    text = printed("fine_tuning", "--pretraining-steps", "100", "--steps", "50", "--out", str(out))
    # Chance is 0.2; the defaults reach 0.86, and 0.83 without what was learned before.
    assert number(r"accuracy fine-tuned: ([\d.]+)", text) > 0.65
    assert "layer_1.no_decay" in text
    assert out.is_file()


def test_gan(tmp_path: Path) -> None:
    out = tmp_path / "players"
    text = printed("gan", "--steps", "300", "--batch-size", "128", "--out", str(out))
    first = number(r"energy distance: ([\d.]+) at first", text)
    last = number(r"at first, ([\d.]+) at last", text)
    assert last < 0.75 * first  # 1.14 and 0.11 in the defaults' run
    names = {*load_file(out)}
    assert {name.split("/")[0] for name in names} >= {"model", "optimizer"}
    assert any("generator" in name for name in names)
    assert any("discriminator" in name for name in names)


@pytest.mark.parametrize("search", ["strong_wolfe", "more_thuente"])
def test_pinn(search: str, tmp_path: Path) -> None:
    lengths = ("--epochs", "100", "--iterations", "100", "--points", "200")
    text = printed("pinn_lbfgs", *lengths, "--line-search", search, "--out", str(tmp_path / "u"))
    adam = number(r"relative error: ([\d.e+-]+) after Adam", text)
    lbfgs = number(r"after Adam, ([\d.e+-]+) after LBFGS", text)
    assert lbfgs < adam / 3  # by 20 in the defaults' run
    assert lbfgs < 0.05  # 1 is what u = 0 would have
    assert (tmp_path / "u").is_file()


def test_own_rule(tmp_path: Path) -> None:
    text = printed("own_rule", "--epochs", "4", "--out", str(tmp_path / "run"))
    assert "(the same)" in text
    assert "state is the same after loading" in text
    assert text.count("fused") == 4
    assert number(r"test accuracy: ([\d.]+)", text) > 0.75  # ten epochs reach 0.93


def test_eight_bit(tmp_path: Path) -> None:
    out = tmp_path / "table.txt"
    text = printed("eight_bit", "--epochs", "3", "--out", str(out))
    exact = number(r"final loss: ([\d.]+) in float32", text)
    assert exact < 1.0  # from log(10) = 2.3
    # After three epochs of the defaults they differ in the fourth digit.
    assert number(r"in float32, ([\d.]+) in few bits", text) == pytest.approx(exact, rel=0.02)
    # 16 bytes an element become 8.02, and small tensors have their state in float32.
    assert 50 < number(r"bytes: ([\d.]+)% of float32's", text) < 53
    assert out.read_text(encoding="utf-8") in text


def in_this_process(name: str, *arguments: str) -> None:
    """Run an example's main with these arguments, sparing the import of torch."""
    before, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


@pytest.mark.parametrize("name", NAMES)
def test_help_names_the_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        in_this_process(name, "--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert all(option in text for option in ("--lr", "--device", "--seed", "--out"))
    assert "--epochs" in text or "--steps" in text


@pytest.mark.parametrize("name", NAMES)
def test_the_table_of_examples_has_it(name: str) -> None:
    assert f"({name}.py)" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
