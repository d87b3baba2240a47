"""The line about a slow compile: printed once, only when slow, and not to those who declined it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from steprule.engines.kernel_cache import slow_compile as notice
from steprule.engines.kernel_cache.slow_compile import PATIENCE, announce_if_slow, message


class FakeTimer:
    """A timer whose time comes when a test says so."""

    made: list[FakeTimer]

    def __init__(self, seconds: float, function: Callable[[], None]) -> None:
        self.seconds, self.function = seconds, function
        self.daemon = self.started = self.cancelled = False
        self.made.append(self)

    def start(self) -> None:
        self.started = True

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notice, "_announced", set())
    monkeypatch.setattr(FakeTimer, "made", [], raising=False)
    monkeypatch.delenv("STEPRULE_QUIET", raising=False)


def slow(title: str, folder: Path | None) -> None:
    """Something that takes longer than anyone's patience."""
    with announce_if_slow(title, folder, FakeTimer):
        for timer in FakeTimer.made:
            if not timer.cancelled:
                timer.function()


def test_nothing_is_said_of_what_is_quick(capsys: pytest.CaptureFixture[str]) -> None:
    with announce_if_slow("the rule 'adam'", None, FakeTimer):
        pass
    (timer,) = FakeTimer.made
    assert timer.seconds == PATIENCE == 2.0
    assert (timer.started, timer.cancelled, timer.daemon) == (True, True, True)
    assert capsys.readouterr() == ("", "")


def test_the_timer_is_cancelled_when_compiling_fails() -> None:
    with pytest.raises(ZeroDivisionError), announce_if_slow("a rule", None, FakeTimer):
        raise ZeroDivisionError
    assert FakeTimer.made[0].cancelled


def test_one_line_for_each_thing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "not" / "yet" / "there"
    for title in ("the rule 'adam'", "the rule 'adam'", "the rule 'sgd'"):
        slow(title, folder)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        message("the rule 'adam'", folder),
        message("the rule 'sgd'", folder),
    ]
    assert "'adam'" in err
    assert f"kept in {folder}" in err
    assert "steprule warm" in err


def test_no_promise_where_nothing_can_be_kept(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    for folder in (None, blocked / "steprule"):
        assert "not kept" in message("a rule", folder)
        assert "STEPRULE_CACHE_DIR" in message("a rule", folder)


@pytest.mark.parametrize(("value", "lines"), [("1", 0), ("yes", 0), ("0", 1), ("", 1)])
def test_it_can_be_declined(
    value: str,
    lines: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("STEPRULE_QUIET", value)
    slow("a rule", tmp_path)
    assert capsys.readouterr().err.count("\n") == lines


def test_without_stderr_nothing_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    slow("a rule", tmp_path)


STEP = """
import torch, steprule
from steprule.engines.kernel_cache import slow_compile as notice
notice.PATIENCE = 0.0
param = torch.ones(5, requires_grad=True)
param.grad = torch.ones(5)
steprule.SGD([param], lr=0.25).step()
"""


def test_a_cold_first_step_names_its_rule(tmp_path: Path) -> None:
    environment = {**os.environ, "STEPRULE_CACHE_DIR": str(tmp_path)}
    texts = [
        subprocess.run(
            [sys.executable, "-c", STEP],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stderr.splitlines()
        for _ in range(2)
    ]
    assert any("compiling the rule 'sgd' for this processor" in line for line in texts[0])
    assert texts[1] == []
