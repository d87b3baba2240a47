"""`steprule compare`: ranks of equals and of what was stopped, and a report that is of one call."""

from __future__ import annotations

import functools
import json
import math
import statistics
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare_requests
import pytest

from steprule.cli import charts as charts_module
from steprule.cli import main
from steprule.cli import page as page_module
from steprule.cli import report as report_module
from steprule.cli.budget import Budget
from steprule.cli.charts import PAPER, BarChart, Style, literal
from steprule.cli.compare import compare
from steprule.cli.comparison import Comparison
from steprule.cli.contenders import parse_contenders
from steprule.cli.curves import FigureCurves, chart_keys
from steprule.cli.notes import notes_of
from steprule.cli.runs import Point, Run
from steprule.cli.standings import interval_of, standings_of

OWN = """
import torch
calls = [0]
def problem(loss=None, evaluate=None):
    x = torch.randn(40, 3)
    squared = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    return torch.nn.Linear(3, 1), loss or squared, (x, x.sum(dim=1, keepdim=True)), evaluate
def make_problem():
    return problem()[:3]
def late():
    def loss(model, batch):
        calls[0] += 1
        if calls[0] > 40:
            raise KeyError("late")
        return model(batch[0]).square().mean()
    return problem(loss)[:3]
def clash():
    return problem(evaluate=lambda model: {
        "loss": float(model.weight.abs().sum()), "step": 7.0, "state": 2.0, "interval": 1.0,
    })
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(OWN)
    return tmp_path


request = functools.partial(compare_requests.request, problem="mine.py")


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("report/results.json").read_text(encoding="utf-8"))
    return found


def ended(label: str, values: list[float], seed: int = 0, **kinds: Any) -> Run:
    contender = parse_contenders(label, [], "auto")[0][0]
    points = [Point(5 * (i + 1), 1.0, {"loss": value}) for i, value in enumerate(values)]
    return Run(contender, seed, points, step_seconds=[0.1], **({"share": 1.0} | kinds))


def comparison(runs: list[Run], **kinds: Any) -> Comparison:
    contenders = list({run.label: run.contender for run in runs}.values())
    return Comparison("", "", {}, 3, contenders, runs=runs, **kinds)


# ---- ranks ---------------------------------------------------------------------------------


def test_equals_share_a_rank() -> None:
    runs = [ended(label, [value]) for label, value in {"sgd": 2, "adam": 1, "lion": 1}.items()]
    assert [(one.label, one.rank) for one in standings_of([*runs, ended("qhm", [3])])] == [
        ("adam", 1),
        ("lion", 1),
        ("sgd", 3),
        ("qhm", 4),
    ]


def test_the_intervals_median_is_the_ranks_median() -> None:
    low, high = interval_of([float(value) for value in range(6)])
    # Of symmetric values the interval lies symmetrically about their median.
    assert (low + high) / 2 == statistics.median(range(6))
    runs = [ended("sgd", [value], seed) for seed, value in enumerate([1.0, 2.0, 3.0, math.inf])]
    (standing,) = standings_of(runs)
    assert standing.median == 2.5


def test_what_was_stopped_is_ranked_by_the_last_look_that_all_have_had() -> None:
    ahead = ended("sgd", [3.0, 2.0, 0.5], share=0.3)
    behind = ended("adam", [3.0, 1.0], share=0.2)
    behind.points.append(Point(12, 1.0, {"loss": 0.9}, is_out_of_turn=True))
    found = standings_of([ahead, behind])
    assert [(one.label, one.median, one.figure("loss")) for one in found] == [
        ("adam", 1.0, 1.0),
        ("sgd", 2.0, 2.0),
    ]
    notes = notes_of(comparison([ahead, behind], stop="Ctrl-C"))
    assert "Ranks are by what everybody had come to at step 10." in notes[0]


def test_who_was_not_looked_at_has_not_diverged() -> None:
    runs = [ended("sgd", [1.0], share=0.2), ended("adam", [], share=0.1)]
    assert [one.instead_of_a_rank for one in standings_of(runs)] == ["", "not judged yet"]
    assert [one.broken_off for one in standings_of(runs)] == [0, 0]


def test_a_partial_report_counts_the_seeds_that_count() -> None:
    runs = [ended(label, [1.0], seed) for seed in (0, 1) for label in ("sgd", "adam")]
    stopped = [*runs, ended("sgd", [1.0], 2, share=0.5)]
    found = comparison(stopped, stop="Ctrl-C")
    found.seeds = 9
    assert found.seeds_that_count == 2
    assert json.loads(found.json([]))["interval"] == "from the least to the greatest"
    assert "Ranks are over 2 of 9 seeds." in notes_of(found)[0]


def test_when_everybody_diverges_it_is_said() -> None:
    found = comparison([ended("sgd", [9.0], end="diverged"), ended("adam", [9.0], end="diverged")])
    assert notes_of(found)[0].startswith("Everybody diverged")


def test_default_rates_are_said_to_be_so() -> None:
    found = comparison([ended("lion", [1.0]), ended("adam+cautious", [2.0])])
    (note,) = notes_of(found)  # what stands in the name is not said again
    assert note.startswith("Without a search for a learning rate: all. ")
    assert "the classes' defaults, but for" in note
    assert "(lion 0.0003)" in note  # whose own default is 0.0001
    assert "--search N or --lr-sweep" in note
    for run in found.runs:
        run.contender = replace(run.contender, has_default_rate=False)
    assert notes_of(found) == []


# ---- what is written -----------------------------------------------------------------------


def test_an_error_of_the_users_code_comes_after_a_partial_report() -> None:
    with pytest.raises(KeyError, match="late"):
        main(["compare", "mine.py:late", *["--optimizers", "sgd,adam", "--report", "report"]])
    assert "ended by KeyError" in Path("report/report.html").read_text()
    assert results()["stop"] == "KeyError: 'late'"
    assert [len(run["batch_losses"]) for run in results()["runs"]] == [20, 20]


def test_ctrl_c_while_drawing_keeps_what_was_measured_and_no_other_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compare(request(lr_sweep=1, optimizers="sgd"))
    assert Path("report/sensitivity.png").exists()

    def interrupted(chart: Any) -> bytes:
        raise KeyboardInterrupt

    monkeypatch.setattr(charts_module, "png", interrupted)
    with pytest.raises(KeyboardInterrupt):
        compare(request(optimizers="adam"))
    assert [run["optimizer"] for run in results()["runs"]] == ["adam"]
    assert [path.name for path in Path("report").iterdir()] == ["results.json"]


def test_charts_of_a_call_before_do_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charts_module, "png", lambda chart: b"drawn")
    compare(request(lr_sweep=1, optimizers="sgd"))
    Path("report/kept.png").touch()
    compare(request(optimizers="sgd"))
    found = {path.name for path in Path("report").glob("*.png")}
    assert found == {*results()["charts"], "kept.png"}
    assert "sensitivity.png" not in found


def test_a_users_figures_take_the_place_of_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(page_module, "write", lambda *arguments: [])
    found = compare(request(problem="mine.py:clash", seeds=2, steps=2))
    heads = report_module.columns(found)
    assert len(heads) == len(set(heads))
    assert "state (evaluate)" in heads
    point = results()["runs"][0]["points"][-1]
    assert point["step"] == 2
    assert point["figures"]["step"] == 7.0
    keys = chart_keys(["loss", "top-1", "top 1", "state", "", "loss_by_time"])
    assert [*keys.values()] == [
        *("loss", "figure_top_1", "figure_top_1_2", "figure_state", "figure_"),
        "figure_loss_by_time",
    ]


def test_what_repeats_it_names_the_folder_and_all_digits() -> None:
    asked = request(steps=None, seconds=1234567.25)
    assert asked.command([]).endswith("--report report")
    assert "--seconds 1234567.25" in asked.command([])
    assert Budget(seconds=20.0).words() == ["--seconds", "20.0"]
    assert asked.settings["seconds"] == 1234567.25
    assert asked.settings["seeds"] == [0]


def test_wrappers_and_engines_of_diverged_runs_are_in_the_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(page_module, "write", lambda *arguments: [])
    compare(request(optimizers="sgd,sam:adam+rho=0.1", lr=("sgd=1e30",), steps=20))
    sgd, sam = results()["runs"]
    assert (sgd["end"], sgd["engines"]) == ("diverged", ["eager"])
    assert sgd["explain"]
    assert sam["wrappers"] == [{"name": "SAM", "options": {"rho": 0.1}}]


# ---- charts --------------------------------------------------------------------------------


def test_no_two_of_many_optimizers_look_the_same() -> None:
    found = comparison([ended(label, [1.0]) for label in LABELS])
    assert len(set(report_module._styles(found).values())) == len(LABELS)


LABELS = [
    one.label for one in parse_contenders("all,sgd@eager,torch:adam,torch:sgd", [], "auto")[0]
]


def test_figures_that_are_far_apart_have_a_logarithmic_axis() -> None:
    runs = [ended("sgd", [1.0]), ended("adam", [1.0])]
    for run, size in zip(runs, (0, 10), strict=True):
        run.state_bytes = size
    styles = {run.label: Style(0) for run in runs}
    assert [chart.log for chart in report_module._costs(runs, styles)] == [False, False]
    runs[0].state_bytes, runs[0].step_seconds = 10**6, [9.0]
    charts = report_module._costs(runs, styles)
    assert [chart.log for chart in charts] == [True, True]
    assert charts[1].bars[0][3] == "1\N{NO-BREAK SPACE}MB"
    low, high = charts[1]._limits()
    assert 0 < low < 10 < 10**6 < high


def test_a_figures_name_stays_as_it_is_written() -> None:
    standings = standings_of([ended("sgd", [1.0])])
    curves = FigureCurves(standings, {"sgd": Style(0)}, ["MSE in $ per $x_{"])
    title = curves.by_step("MSE in $ per $x_{").title
    assert title == "MSE in $ per $x_{ by step"
    chart = BarChart("a", title, "", [("$x_{$", Style(0), 1.0, "1")])
    chart.draw(PAPER).draw_without_rendering()
    assert literal("$1") == r"\$1"
