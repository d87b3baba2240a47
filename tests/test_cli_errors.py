"""A request that cannot be met: one line on stderr, exit code 2, nothing written."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import steprule.cli
from steprule.cli import main, training

X = np.random.default_rng(0).normal(size=(40, 5))
Y = np.arange(40) % 3


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Run a command that must be refused and return its one line."""
    assert main(["compare", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("steprule: ")
    assert not Path("steprule-report").exists()
    return err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--optimizers", "foo"], "unknown optimizer 'foo'; steprule's are "),
        (["--optimizers", "adm"], "did you mean 'adam'?"),
        (["--optimizers", "torch:foo"], "unknown optimizer 'torch:foo'; torch's are "),
        (["--optimizers", ""], "unknown optimizer ''"),
        (["--optimizers", "sgd,,adam"], "unknown optimizer ''"),
        (["--optimizers", "sgd,sgd"], "'sgd' is named more than once"),
        (["--optimizers", "torch:sparseadam"], "takes sparse gradients only"),
        (["--optimizers", "torch:rprop@fused"], "torch's class has no fused mode"),
        (["--optimizers", "adam@warp"], "unknown engine 'warp'; valid: auto, eager"),
        (["--engine", "cuda"], "unknown engine 'cuda'; valid: auto, eager"),
        (["--lr", "abc"], "expected a finite number of 0 or more, got 'abc'"),
        (["--lr", "adam=abc"], "expected a finite number of 0 or more, got 'abc'"),
        (["--lr", "-1"], "expected a finite number of 0 or more, got '-1'"),
        (["--lr", "nan"], "expected a finite number of 0 or more, got 'nan'"),
        (["--lr", "inf"], "expected a finite number of 0 or more, got 'inf'"),
        (["--lr", "foo=1"], "'foo' is not among the optimizers compared: sgd, adam"),
        (["--lr", "adam=1", "--lr", "adam=2"], "a learning rate for adam is given twice"),
        (["--epochs", "0"], "'--epochs': expected a whole number from 1 to"),
        (["--epochs", "1.5"], "'--epochs': expected a whole number from 1 to"),
        (["--epochs", "many"], "got 'many'"),
        (["--steps", "0"], "'--steps': expected a whole number from 1 to"),
        (["--seconds", "0"], "'--seconds': expected a finite number above 0, got '0'"),
        (["--seeds", "0"], "'--seeds': expected a whole number from 1 to"),
        (["--search", "0"], "'--search': expected a whole number from 1 to"),
        (["--lr-sweep", "x"], "'--lr-sweep': expected a whole number from 1 to"),
        (["--batch-size", "0"], "'--batch-size': expected a whole number from 1 to"),
        (["--seed", "-1"], "'--seed': expected a whole number from 0 to"),
        (["--threads", "0"], "'--threads': expected a whole number from 1 to"),
        (["--data", "missing.npz"], "missing.npz: No such file or directory"),
        (["--data", "."], "--data .: "),
        (["--colour"], "--colour"),
        (["surplus"], "surplus"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_option(
    arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, *arguments)


def with_value(values: np.ndarray[Any, Any], where: Any, value: float) -> np.ndarray[Any, Any]:
    changed = values.astype(float)
    changed[where] = value
    return changed


@pytest.mark.parametrize(
    ("arrays", "expected"),
    [
        ({}, "no array 'x'"),
        ({"x": X}, "no array 'y' among ['x']; expected arrays x (n, features)"),
        ({"x": X, "y": Y[:-1]}, "x has 40 rows and y 39"),
        ({"x": X[0], "y": Y}, "x has shape (5,); expected two: (n, features)"),
        ({"x": X[:0], "y": Y[:0]}, "x is empty: shape (0, 5)"),
        ({"x": X[:, :0], "y": Y}, "x is empty: shape (40, 0)"),
        ({"x": X[:2], "y": Y[:2]}, "x has 2 rows; expected 3 or more"),
        ({"x": X.astype(str), "y": Y}, "expected real numbers"),
        ({"x": X + 1j, "y": Y}, "x has dtype complex128; expected real numbers"),
        ({"x": with_value(X, (2, 1), np.nan), "y": Y}, "x[2, 1] is nan; expected finite"),
        ({"x": with_value(X, (0, 0), np.inf), "y": Y}, "x[0, 0] is inf; expected finite"),
        ({"x": with_value(X, 0, 1e308), "y": Y}, "too large to standardise"),
        ({"x": X, "y": Y[:, None]}, "y has shape (40, 1); expected one: (n,)"),
        ({"x": X, "y": with_value(Y, 3, np.nan)}, "y[3] is nan; expected whole numbers"),
        ({"x": X, "y": Y + 0.5}, "y[0] is 0.5; expected whole numbers"),
        ({"x": X, "y": Y.astype(str)}, "expected whole numbers"),
        ({"x": X, "y": Y * 0}, "y has 1 class in its training rows; expected 2 or more"),
        ({"x": X, "y": Y, "x_test": X}, "x_test and y_test come together"),
        ({"x": X, "y": Y, "x_test": X[:, :3], "y_test": Y}, "x has 5 features and x_test 3"),
        ({"x": X, "y": Y, "x_test": X, "y_test": Y + 1}, "class 3 is in the test rows but not"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_arrays(
    arrays: dict[str, np.ndarray[Any, Any]], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez("data.npz", **arrays)
    error = refusal(capsys, "--data", "data.npz")
    assert error.startswith("steprule: --data data.npz: ")
    assert expected in error


def pickled(path: Path) -> None:
    np.savez(path, x=np.array([{}], dtype=object), y=Y)


def bare(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, X)


def truncated(path: Path) -> None:
    np.savez(path, x=X, y=Y)
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    "write",
    [pickled, bare, truncated, Path.touch, lambda path: path.write_text("hello")],
    ids=["pickled", "bare", "truncated", "empty", "text"],
)
def test_ill_formed_file(write: Callable[[Path], Any], capsys: pytest.CaptureFixture[str]) -> None:
    write(Path("data.npz"))
    assert "not " in refusal(capsys, "--data", "data.npz")


@pytest.mark.parametrize("report", ["a_file", "a_file/below"])
def test_report_folder_that_cannot_be_made(report: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a_file").touch()
    error = refusal(capsys, "--report", report)
    assert error.startswith(f"steprule: --report {report}: ")
    assert "expected a folder" in error


def test_an_optimizer_that_refuses_its_options_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ValueError("lr must be below 3")

    monkeypatch.setitem(steprule.cli.contenders.OPTIMIZERS, "adam", refuse)
    assert main(["compare", "--optimizers", "adam"]) == 2
    assert capsys.readouterr().err == "steprule: adam: lr must be below 3\n"


def test_ctrl_c_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training._Trainer, "step", interrupt)
    assert main(["compare"]) == 130
    assert capsys.readouterr().err == "steprule: interrupted\n"


def test_ctrl_c_while_importing_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupts:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "steprule.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "steprule.cli.app", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupts(), *sys.meta_path])
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "steprule: interrupted\n"


def test_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compere"]) == 2
    assert capsys.readouterr().err.startswith("steprule: No such command 'compere'.")


def test_without_the_extra_one_line_says_how_to_install_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steprule.cli, "find_spec", lambda name: None)
    assert main(["compare"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "steprule: the command line needs its extra: pip install '.[cli]' in the checkout "
        "(not found: jinja2, matplotlib, rich, scikit-learn, typer); doctor and warm do without\n"
    )
