"""Pictures of schedules, and the text they are read from."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.optim.lr_scheduler as torch_schedulers
from helpers import needs_torch
from hypothesis import given, settings
from hypothesis import strategies as st

from steprule import lr_scheduler
from steprule.lr_scheduler.parse import parse_scheduler, scheduler_names
from steprule.plotting import curves, draw_text, plot_schedule
from steprule.schedules import ParseError, cosine, linear, parse


def optimizer(*lrs: float) -> Any:
    groups = [{"params": [torch.zeros(2, requires_grad=True)], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


class Own(lr_scheduler.LRScheduler):
    def get_lr(self) -> list[Any]:
        return [base / (self.last_epoch + 1) for base in self.base_lrs]


BUILDERS: dict[str, Any] = {
    "pure": lambda o: lr_scheduler.StepLR(o, 3),
    "momentum": lambda o: lr_scheduler.OneCycleLR(o, 1.0, 50),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda epoch: 0.9),
    "own": Own,
    "sequence": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o), lr_scheduler.ExponentialLR(o, 0.9)], [5]
    ),
    "torch": lambda o: torch_schedulers.CosineAnnealingLR(o, 20),
    "torch-sequence": lambda o: torch_schedulers.SequentialLR(
        o, [torch_schedulers.LinearLR(o), torch_schedulers.ExponentialLR(o, 0.9)], [5]
    ),
}


@pytest.mark.parametrize("name", BUILDERS)
def test_a_preview_equals_the_run_and_touches_nothing(name: str) -> None:
    if name == "torch-sequence":
        needs_torch("2.9", "SequentialLR passes an epoch on, and warns of it")
    driven = optimizer(0.1, 0.5)
    scheduler = BUILDERS[name](driven)
    before = copy.deepcopy(driven.state_dict()), repr(scheduler.state_dict())
    lines = curves(scheduler, 30)
    figure = plot_schedule(scheduler, 30)
    assert (driven.state_dict(), repr(scheduler.state_dict())) == before
    assert figure.axes[0].get_xlabel() == "step"
    for step in range(30):
        for index, group in enumerate(driven.param_groups):
            line = lines[min(index, len(lines) - 1)]
            assert line.values[step] == pytest.approx(group["lr"], rel=1e-12, abs=1e-16)
        driven.step()
        scheduler.step()


def test_a_schedule_is_drawn_from_its_values() -> None:
    schedule = cosine(0.1, 0, 90).warmup(5)
    drawn = schedule.plot(100).axes[0].lines[0]
    assert np.array_equal(drawn.get_ydata(), schedule(np.arange(100)))


def test_what_goes_by_a_metric_cannot_be_foreseen() -> None:
    with pytest.raises(TypeError, match="goes by a metric"):
        plot_schedule(lr_scheduler.ReduceLROnPlateau(optimizer(0.1)), 10)
    with pytest.raises(TypeError, match=r"expected a schedule or a scheduler, got 0\.1"):
        plot_schedule(0.1, 10)
    with pytest.raises(ValueError, match="steps must be"):
        plot_schedule(linear(1, 0, 3), 0)


def test_the_part_past_the_end_of_a_cosine_is_marked() -> None:
    axes = plot_schedule(lr_scheduler.CosineAnnealingLR(optimizer(0.1), 20), 50).axes[0]
    assert [text.get_text() for text in axes.texts] == ["past T_max"]
    held = lr_scheduler.CosineAnnealingLR(optimizer(0.1), 20, hold_last=True)
    assert not plot_schedule(held, 50).axes[0].texts


def test_the_text_picture() -> None:
    picture = draw_text(curves(linear(1, 0, 4), 5), width=5, height=5).splitlines()
    assert picture[:5] == ["  1 |*", "    | *", "0.5 |  *", "    |   *", "  0 |    *"]
    assert picture[-1] == "  * linear(1, 0, steps=4)"


# ---- reading ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("cosine(0.1, 0, steps=0)", 22, "steps must be"),
        ("cosine(0.1, 0, stps=3)", 16, "no argument 'stps'"),
        ("cosine(0.1)", 1, "cosine is missing 2 required"),
        ("linear(1, 2, 3, 4)", 1, "linear takes"),
        ("cosine(0.1, 'a', 3)", 13, "stop must be a number"),
        ("open('x')", 1, "unknown schedule 'open'"),
        ("cosine(1, 0, 9).__class__", 1, "expected a schedule"),
        ("cosine(1, 0, 9).wrmup(3)", 17, "unknown method .wrmup"),
        ("cosine(1, 0, 9).warmup(-3)", 24, "steps must be"),
        ("cosine(1, 0, 9).to_json()", 17, "unknown method"),
        ("cosine(1, 0, 9", 7, "never closed"),
        ("cosine(1, 0, 9) * 3 ** 9", 19, "expected a schedule"),
        ("cosine(1, 0, 9) + 1", 1, "expected a schedule"),
        ("2 * 3", 1, "one side of"),
        ("cosine", 1, "schedules are called"),
        ("(lambda: 0)()", 1, "only schedules and their methods"),
        ("[x for x in y]", 1, "expected a schedule"),
        ("constant(*[1])", 10, "expected a schedule"),
        ("constant(**{'value': 1})", 12, r"\*\* is not allowed"),
        ("f'{1}'", 1, "expected a schedule"),
        ("1", 1, "got the plain value 1"),
        ("", 1, "nothing to read"),
        ("constant(1)\nconstant(2)", 1, "one line"),
        ("constant(1e999)", 10, "finite"),
        ("piecewise({**{}})", 11, r"\*\* is not allowed"),
        ("piecewise({0: 1, [2]: 3})", 18, "keys of a dict must be numbers"),
    ],
)
def test_bad_text_is_refused_at_its_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(ParseError, match=problem) as refused:
        parse(text)
    assert refused.value.column == column
    assert str(refused.value).splitlines()[-1] == " " * (column + 1) + f"^ column {column}"


@pytest.mark.parametrize("text", ["(" * 5000, "[" * 90 + "]" * 90, "-" * 4000 + "1", "a" * 20000])
def test_hostile_text_is_refused(text: str) -> None:
    with pytest.raises(ParseError):
        parse(text)


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="cosinear(){}[],.*=01 '\"_:x@\\\n\0", max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with contextlib.suppress(ParseError):
        parse(text)


def test_schedulers_are_read_from_text() -> None:
    scheduler = parse_scheduler("StepLR:step_size=30,gamma=0.5", [0.1, 0.2])
    assert scheduler.lr_at(31) == [0.05, 0.1]
    assert parse_scheduler("MultiStepLR:milestones=[3,5],lr=1", [9.0]).lr_at(4) == [0.1]
    assert "LambdaLR" not in scheduler_names()


@pytest.mark.parametrize(
    ("text", "column", "problem"),
    [
        ("StepLR:step_size=0", 18, "step_size must be"),
        ("StepLR:step_size=3,gama=1", 20, "no argument 'gama'"),
        ("StepLR:step_size=open(1)", 18, "unknown schedule 'open'"),
        ("StepLR:3", 8, "name=value"),
        ("StepLR", 1, "missing 1 required"),
        ("FooLR:a=1", 1, "unknown scheduler 'FooLR'; known: ConstantLR"),
        ("StepLR:step_size=3,lr=-1", 23, "lr must be at least 0"),
    ],
)
def test_bad_scheduler_text_is_refused_at_its_column(text: str, column: int, problem: str) -> None:
    with pytest.raises(ParseError, match=problem) as refused:
        parse_scheduler(text, [0.1])
    assert refused.value.column == column


# ---- the command --------------------------------------------------------------------------------
@pytest.mark.parametrize("suffix", [".png", ".svg"])
def test_the_command_writes_a_picture(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from steprule.cli.app import run

    out = tmp_path / f"lr{suffix}"
    texts = ["cosine(0.1, 0, steps=90).warmup(5)", "StepLR:step_size=30,gamma=0.1"]
    assert run(["plot", *texts, "--steps", "100", "--out", str(out), "--text"]) == 0
    assert out.stat().st_size > 5000
    printed = capsys.readouterr().out
    assert f"* {texts[0]}" in printed
    assert f"o {texts[1]}" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cosine(0.1, 0, steps=0)"], "^ column 22"),
        (["linear(1, 0, 5)", "cosine("], "schedule 2: cannot read this"),
        (["linear(1, 0, 5)", "--out", "lr.txt"], "must end in .png"),
        (["linear(1, 0, 5)", "--out", "no/such/folder/lr.png"], "--out"),
        (["exponential(1, 1.5)", "--steps", "5000"], "inf at step 1751 cannot be drawn"),
        (["OneCycleLR:max_lr=1,total_steps=5"], "number of total steps is 5"),
    ],
)
def test_the_command_refuses_with_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from steprule.cli.app import run

    assert run(["plot", *arguments]) == 2
    assert message in capsys.readouterr().err
