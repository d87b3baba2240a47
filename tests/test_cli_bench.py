"""`steprule bench` on tiny sizes: what it prints and writes, and what it refuses. No times."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import Links

import steprule
import steprule.bench.peers.peer
from steprule.bench import child
from steprule.bench.peers import PEERS
from steprule.bench.peers.peer import Peer
from steprule.bench.results import Row
from steprule.bench.run import Request, bench
from steprule.bench.sets import SETS, ParamSet
from steprule.bench.subjects import subjects
from steprule.bench.tables import TABLES, epoch, matrices, memory, scaling, startup, steps
from steprule.bench.timing import TRIALS, Make, Timed, interleaved
from steprule.cli import main
from steprule.cli.data import Dataset

TINY = {
    "large": ParamSet("large", "large", [(50,)] * 4, 1, at_limit=True),
    "mlp": ParamSet("mlp", "mlp", [(4, 3), (4,), (2, 4), (2,)], 2),
}


@pytest.fixture(autouse=True)
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Sets, sizes and processes small enough for a test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("steprule.bench.run.SETS", TINY)
    monkeypatch.setattr(scaling, "SIZES", (1000, 3000))
    monkeypatch.setattr(scaling, "MOST_REPEATS", 1)
    monkeypatch.setattr(matrices, "SETS", (ParamSet("two", "two", [(4, 3), (4, 8)], 1),))
    monkeypatch.setattr(epoch, "load", lambda _: few_rows())
    monkeypatch.setattr(startup, "run_child", child_of(startup))
    monkeypatch.setattr(memory, "run_child", child_of(memory))
    return tmp_path


def few_rows() -> Dataset:
    x, y = torch.randn(70, 4), torch.arange(70) % 3
    return Dataset("few", x, y, x, y, 3)


def child_of(module: Any) -> Callable[..., dict[str, Any]]:
    """A stand-in for a process, which takes seconds to import torch."""

    def run(script: str, request: dict[str, Any], *_: Any) -> dict[str, Any]:
        assert (child.FOLDER / script).is_file()
        assert hasattr(steprule, request["name"])
        if module is memory:
            return {"extra": [0, 4096, 2**20], "exact": True}
        return {"import": 0.01, "make": 0.002, "first step": 0.3}

    return run


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "optimizers": ("adam", "rprop"),
        "tables": "steps",
        "sets": "all",
        "rounds": 2,
        "peers": "none",
        "threads": 1,
        "json": None,
        "report": None,
    }
    return Request(**(values | changes))


def words(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_steps_print_medians_spreads_ratios_and_the_memorys_limit(
    capsys: pytest.CaptureFixture[str],
) -> None:
    ((table, rows),) = bench(request())
    printed = words(capsys)
    assert table.name == "steps"
    assert [(row.case, row.optimizer) for row in rows] == [
        (case, name) for case in TINY for name in ("adam", "rprop")
    ]
    assert set(rows[0].readings) == {"ours", "loop", "foreach", "fused"}
    assert "fused" not in rows[1].readings
    assert all(len(values) == 2 for row in rows for values in row.readings.values())
    for head in (
        "min to max",
        "torch loop",
        "torch fused",
        "ratio",
        "of copy",
        "of in place",
        "copy GB/s",
    ):
        assert head in printed
    assert steprule.__version__ in printed


def test_every_table_runs_and_the_json_has_all_of_it() -> None:
    measured = bench(request(optimizers=("adam",), tables="all", rounds=1, json=Path("bench.json")))
    record = json.loads(Path("bench.json").read_text())
    assert list(record["tables"]) == list(TABLES)
    assert record["facts"]["torch"] == torch.__version__
    assert {"processor", "cores", "threads", "steprule", "Python"} <= set(record["facts"])
    assert "steprule bench adam --tables all --sets all --rounds 1" in record["command"]
    for table, rows in measured:
        stored = record["tables"][table.name]["rows"]
        assert len(stored) == len(rows) > 0
        for row, plain in zip(rows, stored, strict=True):
            assert plain["best_of_torch"] == row.best
            for name, values in row.readings.items():
                contender = plain["contenders"][name]
                assert contender["readings"] == list(values)
                assert contender["minimum"] <= contender["median"] <= contender["maximum"]
    assert record["tables"]["steps"]["rows"][0]["other_readings"]["copy"]


def test_the_page_stands_alone_with_its_plots_beside_it() -> None:
    names = ("adam",)
    bench(request(optimizers=names, tables="all", rounds=1, sets="mlp", report=Path("page")))
    text = Path("page/bench.html").read_text(encoding="utf-8")
    links = Links(text)
    assert all(reference.startswith("#") for reference in links.references)
    assert len(links.ids) == len(set(links.ids))
    assert not {"script", "link", "img", "iframe"} & set(links.tags)
    assert not re.search(r"#00f[de]\d\d", text)
    images = sorted(path.name for path in Path("page").glob("*.png"))
    assert text.count("<svg") == len(images)
    assert {"steps-adam.png", "scaling-adam.png", "mixes-adam.png", "memory.png"} <= set(images)
    for table in TABLES.values():
        assert f"<h2>{table.title}</h2>" in text


def test_the_limit_is_the_bytes_of_the_slots_at_the_memorys_best_speed() -> None:
    known = subjects()
    slots = {label: known[label].slots() for label in ("sgd", "sgd+momentum", "adam", "rprop")}
    assert slots == {"sgd": 0, "sgd+momentum": 1, "adam": 2, "rprop": 2}
    assert known["adam"].step_bytes(10) == 10 * 4 * (4 + 3)
    ((_, rows),) = bench(request(optimizers=("sgd",), sets="large"))
    row = rows[0]
    for name in steps.PASSES:
        bandwidth = 2 * 4 * 200 / min(row.others[name])
        limit = row.facts[f"{name} limit"]
        assert limit == pytest.approx(known["sgd"].step_bytes(200) / bandwidth)
        assert row.facts[f"of {name}"] == pytest.approx(row.median() / limit)


def test_the_ratio_is_the_best_mode_of_torch_over_ours() -> None:
    readings = {"ours": [1.0, 2.0, 9.0], "loop": [8.0], "fused": [3.0, 5.0], "optax": [1.0]}
    row = Row("set", "adam", readings)
    assert (row.best, row.ratio, row.ratio_to("optax")) == ("fused", 2.0, 0.5)
    assert Row("set", "adam", {"ours": [1.0]}).ratio is None


def test_contenders_take_turns_and_the_order_changes_with_the_trial() -> None:
    calls: list[str] = []

    def maker(name: str) -> Make:
        def ready() -> Timed:
            calls.append(f"make {name}")
            return Timed(lambda: calls.append(name), before=lambda: calls.append("before"))

        return ready

    readings = interleaved(
        lambda: {"a": maker("a"), "b": maker("b"), "out": lambda: None}, rounds=2, trials=2
    )
    assert {name: len(values) for name, values in readings.items()} == {"a": 2, "b": 2}
    runs = [call for call in calls if call != "before"]
    assert runs == ["make a", "make b", *"abab", "make b", "make a", *"baba"]
    assert TRIALS > 1


def test_the_callers_threads_are_left_alone() -> None:
    before = torch.get_num_threads()
    bench(request(optimizers=("sgd",), sets="mlp", threads=before + 1, rounds=1))
    assert torch.get_num_threads() == before


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steprule.bench.peers.peer, "find_spec", lambda name: None)


@pytest.mark.usefixtures("absent")
def test_peers_that_are_not_installed_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    ((_, rows),) = bench(request(optimizers=("sgd",), sets="mlp", peers="all"))
    printed = words(capsys)
    assert set(rows[0].readings) == {"ours", "loop", "foreach", "fused"}
    for peer in PEERS.values():
        assert f"{peer.name} is skipped: {peer.packages[0]}" in printed
        assert peer.install in printed


def fake_peer(step_of: Any, **changes: Any) -> Peer:
    values: dict[str, Any] = {
        "name": "optax",
        "packages": ("torch",),
        "install": "pip install it",
        "comparable": "the same in all but name",
        "takes": None,
        "most_tensors": 4,
        "step_of": step_of,
    }
    return Peer(**(values | changes))


def test_a_peer_that_is_there_is_timed_and_says_what_is_comparable(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = fake_peer(lambda subject, params: subject.twin(params).step, takes=("sgd",))
    monkeypatch.setitem(PEERS, "optax", peer)  # type: ignore[arg-type]
    ((_, rows),) = bench(
        request(optimizers=("sgd", "adam"), sets="mlp", peers="optax", json=Path("bench.json"))
    )
    assert len(rows[0].readings["optax"]) == 2
    assert "optax" not in rows[1].readings
    printed = words(capsys)
    assert "optax: the same in all but name" in printed
    assert "optax is left out where it has no such optimizer (adam)" in printed
    record = json.loads(Path("bench.json").read_text())
    assert record["peers"] == {"optax": "the same in all but name"}
    assert "optax" not in (rows[0].best or "")


def test_a_peer_that_fails_or_has_too_much_to_compile_is_left_out_and_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tries = []

    def broken(*_: object) -> None:
        tries.append(1)
        raise RuntimeError("no C++ compiler found\nand much more")

    monkeypatch.setitem(PEERS, "optax", fake_peer(broken))  # type: ignore[arg-type]
    bench(request(optimizers=("sgd",), sets="mlp", peers="optax"))
    assert len(tries) == 1
    assert "optax failed for sgd, mlp: RuntimeError: no C++ compiler found" in words(capsys)
    few = fake_peer(broken, most_tensors=3)
    monkeypatch.setitem(PEERS, "optax", few)  # type: ignore[arg-type]
    bench(request(optimizers=("sgd",), sets="mlp", peers="optax"))
    assert "left out where there are more than 3 tensors" in words(capsys)


def test_what_the_peers_take_exists() -> None:
    known = subjects()
    for peer in PEERS.values():
        assert set(peer.takes or ()) <= set(known)


def test_the_start_of_a_process_is_timed_in_one() -> None:
    wanted = {"module": "steprule", "name": "SGD", "options": {"lr": 0.1}, "threads": 1}
    found = child.run_child("first_step.py", wanted)
    assert set(found) == set(startup.PARTS)


def test_memory_is_measured_in_a_process() -> None:
    wanted = {
        "module": "torch.optim",
        "name": "SGD",
        "options": {"foreach": True, "momentum": 0.9},
        "threads": 1,
        "shapes": [1_000_000],
        "steps": 2,
    }
    found = child.run_child("peak_memory.py", wanted)
    assert len(found["extra"]) == 2
    assert all(extra >= 0 for extra in found["extra"])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["adm"], "optimizers: unknown 'adm' (did you mean 'adam'?); valid: adadelta, "),
        (["adam", "adam"], "optimizers: 'adam' is named more than once"),
        (["lbfgs"], "optimizers: unknown 'lbfgs'"),
        (["--sets", "huge"], "--sets: unknown 'huge'; valid: large, mlp, all"),
        (["--sets", ""], "--sets: unknown ''"),
        (["--tables", "step"], "--tables: unknown 'step' (did you mean 'steps'?); valid: steps, "),
        (["--peers", "keras"], "--peers: unknown 'keras'; valid: compile, optax, deepspeed, all"),
        (["--peers", "optax,none"], "--peers: unknown 'none'"),
        (["--rounds", "0"], "'--rounds': expected a whole number from 1 to"),
        (["--rounds", "1.5"], "'--rounds': expected a whole number from 1 to"),
        (["--threads", "0"], "'--threads': expected a whole number from 1 to"),
        (["--json", "missing/bench.json"], "--json missing/bench.json: No such file"),
        (["--json", "."], "--json .: "),
        (["--report", "a_file"], "--report a_file: "),
        (["--colour"], "--colour"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_input(arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("a_file").touch()
    assert main(["bench", "--sets", "mlp", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("steprule: ")
    assert expected in err


def test_the_command_line_reaches_it_and_is_plain_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "sgd", "--sets", "mlp", "--rounds", "1", "--json", "out.json"]) == 0
    out, err = capsys.readouterr()
    assert err == "steprule bench: step: mlp, sgd\n"
    assert "of copy" not in out  # there are no such columns of a small set
    assert "\x1b" not in out
    assert "\r" not in out
    assert "JSON: out.json" in " ".join(out.split())
    assert Path("out.json").stat().st_size > 0


def test_the_real_sets_have_the_sizes_they_are_named_for() -> None:
    assert {name: (len(one.shapes), one.elements) for name, one in SETS.items()} == {
        "large": (10, 20_000_000),
        "small": (1000, 500 * (64 * 64 + 64)),
        "mlp": (4, 784 * 200 + 200 + 200 * 10 + 10),
        "tiny": (10_000, 160_000),
    }
