"""`steprule compare` on a small file: what it trains, prints and writes."""

from __future__ import annotations

import functools
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import compare_requests
import numpy as np
import pytest
import torch
from helpers import needs_torch
from pages import Links

import steprule
from steprule.cli import contenders as contenders_module
from steprule.cli import main
from steprule.cli import page as page_module
from steprule.cli.charts import spread
from steprule.cli.compare import compare
from steprule.cli.contenders import parse_contenders
from steprule.cli.data import load
from steprule.cli.runs import Run
from steprule.cli.training import state_bytes
from steprule.problems.classifier import network


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_data(tmp_path / "small.npz")
    return tmp_path


def write_data(path: Path) -> None:
    random = np.random.default_rng(0)
    y = random.integers(0, 3, 60)
    x = random.normal(size=(60, 4)) + 2 * np.eye(3, 4)[y]
    np.savez(path, x=x, y=y + 5)


@pytest.fixture
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than training does here; for tests that don't look at the page."""
    monkeypatch.setattr(page_module, "write", lambda *arguments: [])


request = functools.partial(
    compare_requests.request, epochs=3, steps=None, batch_size=16, data=Path("small.npz")
)


def page() -> str:
    return Path("report/report.html").read_text(encoding="utf-8")


def curves(runs: list[Run]) -> list[tuple[str, list[float], list[float]]]:
    return [(run.label, losses(run), figures(run, "test accuracy")) for run in runs]


def losses(run: Run) -> list[float]:
    return figures(run, "train loss")


def figures(run: Run, name: str) -> list[float]:
    return [point.figures[name] for point in run.points]


def runs_of(**changes: Any) -> list[Run]:
    return compare(request(**changes)).runs


@pytest.mark.usefixtures("no_page")
def test_same_seed_same_numbers() -> None:
    assert curves(runs_of()) == curves(runs_of())


@pytest.mark.usefixtures("no_page")
def test_another_seed_gives_other_numbers() -> None:
    assert curves(runs_of()) != curves(runs_of(seed=1))


@pytest.mark.usefixtures("no_page")
def test_everyone_starts_from_the_same_weights_and_learns() -> None:
    first, second = runs_of(lr=("adam=0.01",))
    assert losses(first)[0] == losses(second)[0]
    assert all(losses(run)[-1] < 0.6 * losses(run)[0] for run in (first, second))
    assert all(len(run.step_seconds) == len(run.rates) == 3 * 3 for run in (first, second))


@pytest.mark.usefixtures("no_page")
def test_torchs_own_class_runs_in_the_same_table_and_agrees(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ours, theirs = runs_of(optimizers="adam,torch:adam")
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-4)
    assert ours.state_bytes == theirs.state_bytes
    assert "torch:adam" in capsys.readouterr().out


def test_a_learning_rate_goes_to_the_closest_name() -> None:
    found, _ = parse_contenders(
        "sgd,adam,adam@eager,torch:adam,torch:sgd",
        ["0.5", "adam=0.25", "adam@eager=0.125", "torch:sgd=2"],
        "auto",
    )
    assert {one.label: one.options["lr"] for one in found} == {
        "sgd": 0.5,
        "adam": 0.25,
        "adam@eager": 0.125,
        "torch:adam": 0.25,
        "torch:sgd": 2.0,
    }


def test_engines_are_asked_for_by_name_or_for_all() -> None:
    found, _ = parse_contenders("sgd,adam@eager,torch:adam@fused", [], "foreach")
    assert [one.options.get("engine") for one in found] == ["foreach", "eager", None]
    assert found[2].options["fused"] is True


def test_nothing_named_compares_a_few_with_torch() -> None:
    found, notes = parse_contenders(None, [], "auto")
    labels = [one.label for one in found]
    assert labels[:2] == ["sgd", "adam"]
    assert "torch:adam" in labels
    assert notes == []


class FromTorch(torch.optim.Optimizer):
    """Takes the place of a registered class: torch's update, and the argument `engine`."""

    def __init__(self, params: Any, engine: str = "auto", **options: Any) -> None:
        super().__init__(params, **options)


class Lbfgs(FromTorch, torch.optim.LBFGS):
    needs_closure = True


class SparseAdam(FromTorch, torch.optim.SparseAdam):
    needs_sparse = True


class Muon(FromTorch, torch.optim.Adam):  # which every torch has
    only_2d = True


@pytest.mark.usefixtures("no_page")
def test_all_takes_closures_and_matrices_and_leaves_sparse_ones_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_torch("2.6", "torch's optimizers take no names, and these stand for ours")
    registry = {"lbfgs": Lbfgs, "sparseadam": SparseAdam, "muon": Muon}
    monkeypatch.setattr(contenders_module, "OPTIMIZERS", registry)
    runs = runs_of(optimizers="all")
    printed = " ".join(capsys.readouterr().out.split())
    assert [run.label for run in runs] == ["lbfgs", "muon"]
    assert all(losses(run)[-1] < losses(run)[0] for run in runs)
    assert "sparseadam was left out" in printed
    assert "lbfgs evaluates the loss itself" in printed
    assert "muon takes matrices only" in printed


@pytest.mark.usefixtures("no_page")
def test_the_whole_registry_trains() -> None:
    runs = runs_of(optimizers="all", epochs=1)
    assert len(runs) == len({run.label for run in runs}) >= 3
    assert all(np.isfinite(losses(run)).all() for run in runs)


def test_state_bytes_counts_every_tensor_of_the_state() -> None:
    model = network(features=4, classes=3, seed=0)
    optimizer = torch.optim.Adam(model.parameters())
    sum(param.sum() for param in model.parameters()).backward()
    assert state_bytes(optimizer) == 0
    optimizer.step()
    elements = 4 * 200 + 200 + 200 * 3 + 3
    assert state_bytes(optimizer) == 2 * 4 * elements + 4 * 4


def test_a_run_that_diverges_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    compare(request(lr=("sgd=1e30",)))
    assert "diverged" in capsys.readouterr().out
    assert "diverged" in page()


@pytest.mark.usefixtures("no_page")
def test_the_callers_threads_and_random_state_are_left_alone() -> None:
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    compare(request(threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), random)


def test_output_without_a_terminal_is_plain_and_says_where_the_report_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(shlex.split("compare --optimizers sgd --epochs 1 --data small.npz")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert "\r" not in out
    assert "Report: steprule-report/report.html" in out
    for column in ("train loss", "test accuracy", "step() median", "state"):
        assert column in out


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a report that several tests look at."""
    place = tmp_path_factory.mktemp("report")
    write_data(place / "small.npz")
    compare(request(data=place / "small.npz", report=place / "report"))
    return place / "report"


def test_the_page_stands_alone(report: Path) -> None:
    text = (report / "report.html").read_text(encoding="utf-8")
    links = Links(text)
    assert [reference for reference in links.references if not reference.startswith("#")] == []
    assert {reference[1:] for reference in links.references} <= set(links.ids)
    assert len(links.ids) == len(set(links.ids))
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    assert "@import" not in text


def test_the_page_tells_figures_versions_seed_and_how_to_repeat_it() -> None:
    runs = runs_of(seed=7, lr=("adam=3e-4",))
    text = page()
    assert text.count("<figure") == len(list(Path("report").glob("*.png"))) == 6
    for run in runs:
        assert f"{losses(run)[-1]:.6f}" in text
        assert f"{run.state_bytes:,}\N{NO-BREAK SPACE}B" in text
    assert steprule.__version__ in text
    assert torch.__version__ in text
    assert "<dt>seed</dt><dd>7</dd>" in text
    assert "--lr adam=3e-4 --epochs 3 --batch-size 16 --seed 7" in text
    assert "placeholder" not in text
    assert not re.search(r"#00f[de]\d\d", text)


def test_the_plots_are_png_files(report: Path) -> None:
    for name in ("loss", "loss_by_time", "figure_test_accuracy", "step", "state", "lr"):
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG\r\n")


def test_names_from_the_user_are_escaped_in_the_page() -> None:
    Path("small.npz").rename("<b>&.npz")
    compare(request(data=Path("<b>&.npz")))
    assert "&lt;b&gt;&amp;.npz" in page()
    assert "<b>&.npz" not in page()


def test_a_given_test_set_is_used_and_classes_may_be_any_whole_numbers() -> None:
    x = np.arange(24.0).reshape(8, 3)
    y = np.array([-4, 10] * 4)
    np.savez("with_test.npz", x=x, y=y, x_test=x[:2].astype(np.int32), y_test=y[:2].astype(float))
    data = load(Path("with_test.npz"))
    assert (len(data.x), len(data.x_test), data.classes) == (8, 2, 2)
    assert data.y.tolist() == [0, 1] * 4
    torch.testing.assert_close(data.x.mean(dim=0), torch.zeros(3), atol=1e-6, rtol=0)


def test_the_digits_come_with_scikit_learn() -> None:
    data = load(None)
    assert data.x.shape == (1438, 64)
    assert data.x_test.shape == (359, 64)
    assert data.classes == 10


@pytest.mark.parametrize(
    ("places", "gap"),
    [([], 0.1), ([0.5], 0.1), ([0.2, 0.8], 0.1), ([0.5] * 4, 0.2), ([0.0, 0.0, 1.0, 1.0], 0.1)],
)
def test_labels_are_spread_in_order_without_overlap(places: list[float], gap: float) -> None:
    moved = spread(places, gap)
    assert len(moved) == len(places)
    assert all(-1e-9 <= place <= 1 + 1e-9 for place in moved)
    assert all(b - a >= gap - 1e-9 for a, b in pairwise(moved))


def test_labels_with_room_stay_where_they_are() -> None:
    assert spread([0.2, 0.8], 0.1) == pytest.approx([0.2, 0.8])


def test_list_prints_the_registry(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name, cls in contenders_module.OPTIMIZERS.items():
        assert name in out
        assert cls.__name__ in out
    # A row is a line, however long: nothing is cut or wrapped in a file.
    assert len(out.strip().splitlines()) == len(contenders_module.OPTIMIZERS) + 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"steprule {steprule.__version__}\n"
