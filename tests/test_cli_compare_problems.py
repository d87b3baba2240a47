"""`steprule compare` on a problem of the user's own: seeds, budgets, searches, interruptions."""

from __future__ import annotations

import functools
import json
import math
import shlex
from pathlib import Path
from typing import Any

import compare_requests
import pytest
import torch

from steprule.cli import main, training
from steprule.cli import page as page_module
from steprule.cli import report as report_module
from steprule.cli import search as search_module
from steprule.cli import show as show_module
from steprule.cli.budget import Budget
from steprule.cli.compare import compare
from steprule.cli.contenders import parse_contenders
from steprule.cli.errors import CommandError
from steprule.cli.runs import Point, Run
from steprule.cli.standings import interval_of, standings_of
from steprule.cli.trials import Trial, best_of
from steprule.problems import ProblemError, load_problem
from steprule.rules import OPTIMIZERS

PROBLEM = """
import torch
from torch import nn

class Noisy(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x)

def make_problem(seed):
    x = torch.randn(40, 3)
    loss = lambda model, batch: (model(batch[0]) - batch[1]).square().mean()
    return Noisy(), loss, (x, x.sum(dim=1, keepdim=True))

def judged():
    model, loss, data = make_problem(0)
    return model, loss, data, lambda model: {"error": loss(model, data), "accuracy": 0.5}

def loader():
    model, loss, data = make_problem(0)
    rows = torch.utils.data.TensorDataset(*data)
    return model, loss, torch.utils.data.DataLoader(rows, batch_size=8, shuffle=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(PROBLEM)
    return tmp_path


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training does here; for tests that don't look at the page."""
    monkeypatch.setattr(page_module, "write", lambda *arguments: [])


request = functools.partial(compare_requests.request, problem="own.py")


def results(folder: str = "report") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(folder, "results.json").read_text(encoding="utf-8"))
    return found


def interrupt_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """Have Ctrl-C come in the place of a step."""
    step = training._Trainer.step
    left = iter(range(steps))

    def stepped(trainer: Any, batch: Any) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt
        step(trainer, batch)

    monkeypatch.setattr(training._Trainer, "step", stepped)


# ---- problems ------------------------------------------------------------------------------


def test_seeds_are_ranked_by_medians_with_an_interval_on_the_page() -> None:
    words = "compare own.py --optimizers sgd,adam,torch:sgd --steps 6 --seeds 3 --engine eager"
    assert main([*shlex.split(words), "--report", "report"]) == 0
    found = results()
    assert [run["seed"] for run in found["runs"]] == [0] * 3 + [1] * 3 + [2] * 3
    ranked = found["standings"]
    # The first two are equal where rounding is torch's, to the last bit.
    assert [one["rank"] for one in ranked] in ([1, 1, 3], [1, 2, 3])
    assert [one["median"] for one in ranked] == sorted(one["median"] for one in ranked)
    assert all(one["low"] <= one["median"] <= one["high"] for one in ranked)
    text = Path("report/report.html").read_text(encoding="utf-8")
    assert "from the least to the greatest" in text
    for name in ("loss", "loss_by_time", "spread", "step", "state", "lr"):
        assert Path(f"report/{name}.png").exists()
    assert "own.py --optimizers sgd,adam,torch:sgd --steps 6" in text


@pytest.mark.usefixtures("no_page")
def test_everybody_sees_the_same_batches_and_the_same_dropout() -> None:
    ours, eager, theirs = compare(request(optimizers="sgd@foreach,sgd@eager,torch:sgd")).runs
    # Sums in another order: some units in the last place of float32.
    assert ours.batch_losses == pytest.approx(eager.batch_losses, rel=1e-5)
    assert len(set(theirs.batch_losses)) == 6


@pytest.mark.usefixtures("no_page")
@pytest.mark.parametrize("name", ["make_problem", "loader"])
def test_a_seed_repeats_a_run(name: str) -> None:
    first, again = (compare(request(problem=f"own.py:{name}")).runs for _ in range(2))
    assert [run.batch_losses for run in first] == [run.batch_losses for run in again]


@pytest.mark.usefixtures("no_page")
def test_figures_are_those_of_evaluate_and_dropout_is_off_in_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    first, second = compare(request(problem="own:judged", optimizers="sgd,adam")).runs
    assert first.points[0] == second.points[0]
    assert [point.figures["accuracy"] for point in first.points] == [0.5] * 7
    assert "50.00%" in capsys.readouterr().out


def test_the_template_runs_as_it_stands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "--template"]) == 0
    Path("my_problem.py").write_text(capsys.readouterr().out)
    problem = load_problem("my_problem:make_problem", seed=1)
    batch = next(iter(problem.batches(batch_size=10)))
    assert math.isfinite(float(problem.value(problem.model, batch).detach()))
    assert math.isfinite(problem.figures(problem.model)["loss"])


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("own.py:nothing", "no function 'nothing' there; it has make_problem, judged, loader"),
        ("nowhere:make_problem", "no module 'nowhere' in "),
        ("nowhere.py", "no file nowhere.py"),
        ("own.py:two words", "names no function; expected my_module:make_problem"),
        ("own.py:torch", "torch is no function but module"),
        ("bad.py:raises", "bad.py:raises: ZeroDivisionError: division by zero"),
        ("bad.py:two", "two: must take a seed or nothing, but it needs a, b"),
        ("bad.py:number", "expected a Problem or a tuple (model, loss, data), got int"),
        ("bad.py:no_model", "model must be a torch.nn.Module, got int"),
        ("bad.py:no_loss", "loss must be a function of model, batch, got int"),
        ("bad.py:used_up", "data is used up after one pass (generator)"),
        ("bad.py:one_tensor", "data must be batches (a list, a DataLoader) or a tuple"),
        ("bad.py:unequal", "data: tensors of one length of 1 or more, got [3, 2]"),
    ],
)
def test_what_makes_no_problem_is_refused_by_name(source: str, expected: str) -> None:
    Path("bad.py").write_text(
        "import torch\n"
        "net, loss = torch.nn.Linear(1, 1), lambda model, batch: 0\n"
        "def raises(): 1 / 0\n"
        "def two(a, b): pass\n"
        "def number(): return 3\n"
        "def no_model(): return 3, loss, [1]\n"
        "def no_loss(): return net, 3, [1]\n"
        "def used_up(): return net, loss, (x for x in [1])\n"
        "def one_tensor(): return net, loss, torch.ones(3)\n"
        "def unequal(): return net, loss, (torch.ones(3), torch.ones(2))\n"
    )
    with pytest.raises(ProblemError) as raised:
        load_problem(source)
    assert expected in str(raised.value)


def test_a_loss_that_is_no_loss_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    Path("bad.py").write_text(
        "import torch\n"
        "def make_problem():\n"
        "    return torch.nn.Linear(1, 1), lambda model, batch: 3.0, [1]\n"
    )
    assert main(["compare", "bad.py"]) == 2
    assert "loss must return a tensor of one element, got float" in capsys.readouterr().err


# ---- budgets and schedules -----------------------------------------------------------------


def test_seconds_end_a_run_and_evaluating_takes_none_of_them(
    monkeypatch: pytest.MonkeyPatch, no_page: None
) -> None:
    clock = iter(range(10_000))
    monkeypatch.setattr(training, "_now", lambda model: next(clock) / 10)
    (run,) = compare(request(optimizers="sgd", steps=None, seconds=5.0)).runs
    # The first step, which compiles, is on no clock.
    assert sum(run.train_seconds[1:]) >= 5 > sum(run.train_seconds[1:-1])
    assert run.is_over


@pytest.mark.parametrize(
    ("budget", "length", "is_evaluated", "steps", "points"),
    [
        (Budget(epochs=3), 10, True, 30, 3),
        (Budget(epochs=3), 10, False, 30, 20),
        (Budget(epochs=3), 2, False, 6, 6),
        (Budget(steps=500), 10, True, 500, 20),
        (Budget(seconds=9.0), 10, True, None, 20),
    ],
    ids=str,
)
def test_how_often_a_run_is_looked_at(
    budget: Budget, length: int, is_evaluated: bool, steps: int | None, points: int
) -> None:
    pace = budget.pace(range(length), is_evaluated)
    assert (pace.steps, pace.points) == (steps, points)
    assert pace.passed(10_000, 10_000.0, 10_000) == points
    assert pace.share(10_000, 10_000.0, 10_000) == 1


@pytest.mark.usefixtures("no_page")
def test_a_schedule_is_scaled_to_each_lr() -> None:
    sgd, adam = compare(
        request(schedule="linear(3, 0, steps=4).warmup(2)", lr=("sgd=0.1", "adam=0.01"))
    ).runs
    assert sgd.rates == pytest.approx([0, 0.05, 0.1, 0.075, 0.05, 0.025])
    assert adam.rates == pytest.approx([rate / 10 for rate in sgd.rates])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "cosine(1"}, "--schedule 'cosine(1', column "),
        ({"schedule": "constant(0)"}, "not all 0, over 6 steps; got 0 to 0"),
        ({"schedule": "constant(1)", "steps": None, "seconds": 1.0}, "give --steps"),
        ({"seconds": 1.0}, "--steps and --seconds: give one of them"),
        ({"search": 2, "lr_sweep": 2}, "--search and --lr-sweep: give one of them"),
        ({"data": Path("x.npz")}, "own.py brings data of its own"),
        ({"optimizers": "sum:sgd"}, "unknown wrapper 'sum' in 'sum:sgd'"),
        ({"optimizers": "sgd+momentum=2+0"}, "expected an option's name, got '0'"),
        ({"optimizers": "sgd+momenta=2"}, "sgd+momenta=2: "),
        ({"optimizers": "sam:lbfgs"}, "sam:lbfgs: SAM can't go round LBFGS"),
    ],
    ids=str,
)
def test_what_cannot_be_asked_is_refused_before_training(
    changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(CommandError) as raised:
        compare(request(**changes))
    assert expected in str(raised.value)
    assert not Path("report").exists()


# ---- who is first --------------------------------------------------------------------------


def ended(label: str, seed: int, value: float, end: str = "", share: float = 1.0) -> Run:
    contender = parse_contenders(label, [], "auto")[0][0]
    return Run(contender, seed, [Point(1, 1.0, {"loss": value})], share=share, end=end)


def test_runs_that_diverge_are_no_number_in_a_rank() -> None:
    runs = [
        *(ended("sgd", seed, value) for seed, value in enumerate([1.0, 9.0, 2.0])),
        *(ended("adam", seed, 0.1, "diverged" if seed else "") for seed in range(3)),
        *(ended("adamw", seed, 3.0, "" if seed else "diverged") for seed in range(3)),
    ]
    found = {one.label: one for one in standings_of(runs)}
    assert [*found] == ["sgd", "adamw", "adam"]
    assert [one.rank for one in found.values()] == [1, 2, None]
    assert [one.broken_off for one in found.values()] == [0, 1, 2]
    assert (found["sgd"].median, found["sgd"].low, found["sgd"].high) == (2.0, 1.0, 9.0)
    assert found["adam"].instead_of_a_rank == "diverged"
    assert found["adamw"].high == math.inf


def test_what_was_interrupted_counts_only_where_no_seed_is_whole() -> None:
    whole = [ended("sgd", 0, 2.0), ended("adam", 0, 1.0)]
    half = [ended("sgd", 1, 0.5, share=0.5), ended("adam", 1, 0.4, share=0.5)]
    assert [one.median for one in standings_of([*whole, *half])] == [1.0, 2.0]
    assert [one.median for one in standings_of(half)] == [0.4, 0.5]


def test_the_interval_of_five_and_more_is_the_bootstraps() -> None:
    assert interval_of([3.0, 1.0, 2.0]) == (1.0, 3.0)
    values = [float(value) for value in range(101)]
    low, high = interval_of(values)
    # The exact interval of the median's order statistics is 40 to 60.
    assert 38 <= low <= 42
    assert 58 <= high <= 62
    assert interval_of([1.0] * 6 + [math.inf]) == (1.0, 1.0)


@pytest.mark.usefixtures("no_page")
def test_a_run_that_diverges_ends_there(capsys: pytest.CaptureFixture[str]) -> None:
    runs = compare(request(lr=("sgd=1e30",), steps=40)).runs
    assert [run.end for run in runs] == ["diverged", ""]
    assert len(runs[0].step_seconds) < 40 == len(runs[1].step_seconds)
    assert [one["rank"] for one in results()["standings"]] == [1, None]
    assert results()["standings"][1]["median"] is None
    assert "diverged" in capsys.readouterr().out


@pytest.mark.usefixtures("no_page")
def test_losses_that_grow_without_end_are_divergence_while_they_are_numbers_yet() -> None:
    Path("square.py").write_text(
        "import torch\n"
        "def make_problem():\n"
        "    model = torch.nn.Linear(1, 1)\n"
        "    return model, lambda model, batch: model.weight.square().sum(), [0] * 100\n"
    )
    words = {"problem": "square.py", "optimizers": "sgd+momentum=0", "lr": ("1.2",), "steps": 400}
    (run,) = compare(request(**words)).runs  # each loss is twice the one before
    assert run.end == "diverged"
    assert len(run.step_seconds) < 400
    assert math.isfinite(run.batch_losses[-1])


@pytest.mark.usefixtures("no_page")
def test_one_that_fails_leaves_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Fails(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("no step today")

    monkeypatch.setitem(contenders_of_torch(), "sgd", Fails)
    runs = compare(request(optimizers="adam,torch:sgd")).runs
    assert [run.end for run in runs] == ["", "RuntimeError: no step today"]
    assert "torch:sgd failed: RuntimeError: no step today" in capsys.readouterr().out


def contenders_of_torch() -> Any:
    from steprule.cli.contenders import TORCH_OPTIMIZERS

    return TORCH_OPTIMIZERS


@pytest.mark.usefixtures("no_page")
def test_an_optimizer_with_modes_is_judged_in_eval_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    class Modes(torch.optim.SGD):
        def train(self) -> None:
            seen.append("train")

        def eval(self) -> None:
            seen.append("eval")

        def step(self, closure: Any = None) -> Any:
            seen.append("step")
            return super().step(closure)

    monkeypatch.setitem(contenders_of_torch(), "sgd", Modes)
    compare(request(optimizers="torch:sgd", problem="own.py:judged", steps=2))
    look = ["eval", "train"]
    assert seen == ["train", *look, "step", *look, "step", *look]


# ---- names ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_wrappers_and_options_are_part_of_a_name() -> None:
    text = "sam:sgd+momentum=0+rho=0.1,adamw+cautious,sam:torch:adam,adam+betas=(0.8,0.9)"
    found, _ = parse_contenders(text, ["sam:sgd+momentum=0+rho=0.1=0.5"], "eager")
    assert [one.label for one in found] == text.split(",", 3)
    assert found[0].options == {"lr": 0.5, "momentum": 0, "engine": "eager"}
    assert [options for _, options in found[0].wrappers] == [{"rho": 0.1}]
    assert found[0].needs_closure
    assert found[1].options["cautious"] is True
    assert found[3].options["betas"] == (0.8, 0.9)
    runs = compare(request(optimizers=text)).runs
    assert all(math.isfinite(run.value) and len(run.step_seconds) == 6 for run in runs)


def test_what_takes_matrices_only_has_adamw_beside_it() -> None:
    model = load_problem("own.py").model
    ours, theirs = parse_contenders("muon,torch:adam", [], "eager")[0]
    groups = ours.build(model).param_groups
    assert [group["optimizer"] for group in groups] == ["Muon", "AdamW"]
    assert [[param.ndim for param in group["params"]] for group in groups] == [[2, 2], [1, 1]]
    assert len(theirs.build(model).param_groups) == 1


@pytest.mark.usefixtures("no_page")
def test_a_narrow_terminal_has_fewer_columns() -> None:
    found = compare(request())
    wide, narrow = (show_module.table(found, width) for width in (200, 60))
    assert [str(column.header) for column in wide.columns] == report_module.columns(found)
    assert [str(column.header) for column in narrow.columns][:4] == [
        "rank",
        "optimizer",
        "lr",
        "loss",
    ]
    assert len(narrow.columns) < len(wide.columns)


# ---- searches ------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_page")
def test_a_search_that_was_interrupted_goes_on_as_it_would_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("optuna")
    whole = compare(request(search=3, report=Path("whole")))
    assert [len(trials) for trials in whole.trials.values()] == [3, 3]
    with monkeypatch.context() as patch:
        interrupt_after(patch, 6 * 4 + 2)  # in the second trial of the second optimizer
        with pytest.raises(KeyboardInterrupt):
            compare(request(search=3))
    assert results()["partial"]
    assert [len(trials) for trials in results()["trials"].values()] == [3, 1]
    steps = count_steps(monkeypatch)
    resumed = compare(request(search=3))
    assert resumed.trials == whole.trials
    # Two trials were left, and the two runs that are ranked.
    assert len(steps) == 6 * (2 + 2)
    best = min(whole.trials["adam"], key=lambda trial: trial.value)
    (adam,) = [run for run in resumed.runs if run.label == "adam"]
    assert adam.contender.options["lr"] == best.lr
    assert adam.contender.options["weight_decay"] == best.weight_decay


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    step = training._Trainer.step
    seen: list[None] = []

    def stepped(trainer: Any, batch: Any) -> None:
        seen.append(None)
        step(trainer, batch)

    monkeypatch.setattr(training._Trainer, "step", stepped)
    return seen


def test_pruned_and_diverged_trials_are_never_the_best() -> None:
    trials = [
        Trial(0.1, None, 5.0),
        Trial(0.2, None, 1.0, "pruned"),
        Trial(0.3, None, math.inf, "diverged"),
    ]
    assert best_of(trials) == trials[0]
    assert best_of(trials[1:]) is None


def test_a_search_without_optuna_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_module, "find_spec", lambda name: None)
    with pytest.raises(CommandError, match=r"pip install '\.\[search\]'"):
        compare(request(search=2))


def test_a_storage_that_is_none_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("optuna")
    Path("report").mkdir()
    Path("report/search.db").write_text("no database, and longer than the header of one is" * 9)
    with pytest.raises(CommandError, match=r"search\.db can't be used"):
        compare(request(search=2))


def test_a_sweep_shows_sensitivity_and_changes_no_lr() -> None:
    found = compare(request(optimizers="sgd", lr=("sgd=0.1",), lr_sweep=3))
    assert [trial.lr for trial in found.trials["sgd"]] == pytest.approx([0.1 / 30, 0.1, 3.0])
    assert found.runs[0].rates[0] == 0.1
    assert Path("report/sensitivity.png").exists()


# ---- interruptions -------------------------------------------------------------------------


def test_ctrl_c_leaves_a_report_marked_as_partial(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt_after(monkeypatch, 6 * 2 + 11)  # turns are of five batches, an epoch
    words = "compare own.py --optimizers sgd,adam --steps 6 --seeds 3 --engine eager"
    assert main([*shlex.split(words), "--report", "report"]) == 130
    out, err = capsys.readouterr()
    assert err == "steprule: interrupted\n"
    assert "report.html (partial)" in out
    assert "Partial: the comparison was interrupted" in Path("report/report.html").read_text()
    found = results()
    assert found["partial"]
    assert [one["runs"] for one in found["standings"]] == [1, 1]
    assert [run["end"] for run in found["runs"]] == ["", "", "", "interrupted"]


def test_ctrl_c_before_the_first_step_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt_after(monkeypatch, 0)
    with pytest.raises(KeyboardInterrupt):
        compare(request())
    assert not Path("report/report.html").exists()


def test_every_optimizer_has_an_lr_to_start_a_search_from() -> None:
    for one in parse_contenders("all", [], "auto")[0]:
        assert one.name in OPTIMIZERS
        assert one.lr is not None, one.label
