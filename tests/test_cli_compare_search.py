"""`steprule compare --search`: where it starts, what it leaves alone, and what it goes on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from steprule.cli import search as search_module
from steprule.cli.budget import Budget
from steprule.cli.compare import Request, compare
from steprule.cli.contenders import Contender, parse_contenders
from steprule.cli.errors import CommandError
from steprule.cli.runs import Run
from steprule.cli.search import Search, searched
from steprule.cli.training import Settings
from steprule.cli.trials import SEED, seed_of_trials
from steprule.problems import Problem

optuna = pytest.importorskip("optuna")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def problem(seed: int) -> Problem:
    x = torch.randn(8, 3)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0]) - batch[1]).square().mean()

    return Problem(nn.Linear(3, 1), loss, [(x, x.sum(dim=1, keepdim=True))])


def contender(text: str, *rates: str) -> Contender:
    return parse_contenders(text, rates, "eager")[0][0]


def search(trials: int = 2) -> Search:
    return Search(Path(), trials, "p", Settings(problem, Budget(steps=3), 4), 3, SEED)


def ignore(run: Run) -> None:
    pass


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("adam", {"lr": 0.001, "weight_decay": 0}),
        ("adamw", {"lr": 0.001, "weight_decay": 0.01}),
        ("adamw+weight_decay=0.05", {"lr": 0.001, "weight_decay": 0.05}),
        ("sgd+lr=0.5", {"lr": 0.5, "weight_decay": 0}),
    ],
)
def test_the_first_trial_is_the_contender_as_it_is(text: str, options: dict[str, float]) -> None:
    with search() as at_work:
        one = contender(text)
        at_work.run(one, ignore)
        first, second = at_work.done(one)
    assert first.options == options
    fixed = contender(text).fixed
    assert {name: second.options[name] for name in fixed} == {name: options[name] for name in fixed}
    assert all(second.options[name] != options[name] for name in searched(one))


def test_a_point_that_waits_from_an_interruption_is_not_set_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with search() as at_work:
        one = contender("adam")
        study_class = optuna.study.Study
        with monkeypatch.context() as patch:
            patch.setattr(study_class, "ask", lambda study: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                at_work.run(one, ignore)
        at_work.run(one, ignore)
        (study,) = at_work.storage.get_all_studies()
        states = [trial.state for trial in at_work.storage.get_all_trials(study._study_id)]
    assert [state.name for state in states] == ["COMPLETE", "COMPLETE"]


def test_two_searches_at_once_are_refused() -> None:
    pytest.importorskip("fcntl")
    with search(), pytest.raises(CommandError, match="another search is at work"):
        search()
    search().close()


def test_trials_are_of_one_seed_however_many_runs_are_ranked() -> None:
    assert seed_of_trials(range(3)) == seed_of_trials(range(9)) == seed_of_trials(range(7, 8))
    assert seed_of_trials(range(SEED - 1, SEED + 2)) == SEED + 2


def test_studies_of_long_names_are_told_apart() -> None:
    with search() as at_work:
        for end in "ab":
            at_work.about = ["x" * 600 + end]
            at_work._study(contender("adam"))
        assert len(at_work.storage.get_all_studies()) == 2


def test_pruning_waits_for_a_quarter_of_the_looks() -> None:
    with search() as at_work:
        at_work.points = 8
        assert at_work._study(contender("adam")).pruner._n_warmup_steps == 2


@pytest.mark.parametrize("kind", ["search", "lr_sweep"])
def test_what_cannot_be_searched_is_refused_before_a_folder_is_made(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def request(*rates: str) -> Request:
        return Request("sgd", rates, None, 4, 0, 1, "eager", None, Path("r"), **{kind: 2})  # type: ignore[arg-type]

    with pytest.raises(CommandError, match=f"{kind.replace('_', '-')}: sgd starts at lr 0"):
        compare(request("0"))
    if kind == "search":
        monkeypatch.setattr(search_module, "find_spec", lambda name: None)
        with pytest.raises(CommandError, match="needs Optuna"):
            compare(request())
    assert not Path("r").exists()


# ---- names ---------------------------------------------------------------------------------


def test_a_comma_at_the_end_and_all_beside_a_name_are_taken() -> None:
    assert [one.label for one in parse_contenders("adam,", [], "auto")[0]] == ["adam"]
    labels = [one.label for one in parse_contenders("all,adam", [], "auto")[0]]
    assert labels.count("adam") == 1
    assert set(labels) == {one.label for one in parse_contenders("all", [], "auto")[0]}


def test_a_wrappers_option_misspelled_is_named() -> None:
    with pytest.raises(CommandError, match="unknown option 'rhoo'; did you mean 'rho' of sam"):
        contender("sam:adam+rhoo=0.1")
