"""Checkpoints of many ranks: a file a rank, an index, and any number of ranks to load them."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from forged_checkpoints import forged
from processes import HERE, ranks
from rank_programs import checkpoints, killed_saving
from rank_programs.dcp import Case, Run, differences
from safetensors import safe_open
from test_dcp import all_far, cases

import steprule
from steprule.checkpoints.file import opened
from steprule.checkpoints.shard_files import DIGESTS, PLACES, cover_problem


@pytest.mark.parametrize("saved_on", [2, 1])
def test_resumed_is_uninterrupted_on_any_number_of_ranks(saved_on: int, tmp_path: Path) -> None:
    chosen = [case for case in cases() if case.way == "nested"]
    before = ranks(saved_on).run(
        checkpoints.save, str(tmp_path), chosen, is_sharded=saved_on > 1, seconds=90
    )
    folder = str(tmp_path)
    go_on = checkpoints.go_on
    found = {
        "2 ranks": ranks(2).run(go_on, folder, chosen, is_sharded=True, seconds=90),
        "a mesh of 1": ranks(1).run(go_on, folder, chosen, is_sharded=True, seconds=90),
        "plain": ranks(1).run(go_on, folder, chosen, is_sharded=False, seconds=90),
    }
    assert not all_far(before[0], found, chosen)


@pytest.mark.parametrize("saved_on", [2, 1])
def test_plain_and_sharded_tensors_ours_and_torchs(saved_on: int, tmp_path: Path) -> None:
    before = ranks(saved_on).run(checkpoints.save_mixed, str(tmp_path), is_sharded=saved_on > 1)
    for size, is_sharded in ((saved_on, saved_on > 1), (1, True), (1, False)):
        found = ranks(size).run(checkpoints.go_on_mixed, str(tmp_path), is_sharded=is_sharded)
        for one, other in zip(before, found, strict=False):
            assert not differences(one, other)
    if saved_on == 2:
        with opened(tmp_path / checkpoints.FILE) as checkpoint:
            assert len(checkpoint.content["random_state"]["of_ranks"]) == 2


def test_random_states_are_not_shared_by_ranks(tmp_path: Path) -> None:
    before = ranks(2).run(checkpoints.save_mixed, str(tmp_path), is_sharded=True)
    assert not torch.equal(before[0]["drawn"], before[1]["drawn"])
    index = tmp_path / checkpoints.FILE
    with opened(index) as checkpoint:  # as one rank of two would have left it
        states = checkpoint.content["random_state"]["of_ranks"][:1]
        steprule.checkpoints.file.write(index, {"random_state": {"of_ranks": states}}, {})
    for problem in ranks(2).run(checkpoints.random_states_of_fewer, str(tmp_path)):
        assert "saved by 1 ranks, there are 2 now" in problem


def test_one_rank_that_fails_is_heard_by_all(tmp_path: Path) -> None:
    one, other = ranks(2).run(checkpoints.fail_together, str(tmp_path))
    assert one == other
    kinds = {name: one[name][0] for name in ("a value", "a full disk", "the index")}
    assert kinds["a value"][0] == "TypeError"
    assert "rank 1 of 2: extra['there'] is of type object" in kinds["a value"][1]
    assert kinds["a full disk"][0] == kinds["the index"][0] == "OSError"
    assert "rank 1 of 2: [Errno 28] No space left" in kinds["a full disk"][1]
    assert "rank 0 of 2: [Errno 28] No space left" in kinds["the index"][1]
    assert all("what was there is as it was" in text for _, text in kinds.values())
    for name in ("a value", "a full disk", "the index", "other things"):
        assert one[name][1:] == (True, "first"), name
    assert one["other things"][0][0] == "RuntimeError"
    assert "what ranks have of 'extra', of shape (4,)" in one["other things"][0][1]
    assert one["after"] == ("second", 3)


def test_each_rank_reads_its_own_part_alone(tmp_path: Path) -> None:
    found = ranks(2).run(checkpoints.what_is_read, str(tmp_path))
    assert [each["files"] for each in found] == [{"0"}, {"1"}]


def test_the_files_before_are_removed(tmp_path: Path) -> None:
    stranger = tmp_path / "run.txt"
    stranger.write_text("mine")
    left = tmp_path / f"run.{'a' * 16}.0-of-2.part"  # by one that was killed
    left.write_bytes(b"half")
    os.utime(left, (0, 0))
    young = tmp_path / f"run.{'b' * 16}.0-of-2.part"  # somebody may just have begun
    young.write_bytes(b"half")
    found, _ = ranks(2).run(checkpoints.several_saves, str(tmp_path), 3)
    for names in found:
        assert len(names) == 5
        assert {"run", "run.txt", young.name} < {*names}
    assert len({name for names in found for name in names}) == 3 + 2 * 3
    os.utime(young, (0, 0))
    for each in tmp_path.iterdir():
        os.utime(each, (0, 0))
    run = Run(Case("AdamW", {}, "even"), is_sharded=False)
    run.optimizer.save(tmp_path / "run")  # of one process: in one file
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run", "run.txt"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    ranks(2).run(checkpoints.save_large, str(folder))
    return folder


def part(folder: Path, rank: int) -> Path:
    (found,) = folder.glob(f"*.{rank}-of-2.part")
    return found


def test_a_damaged_part_is_named_and_nothing_changes(saved: Path, tmp_path: Path) -> None:
    def flipped(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-100] ^= 1
        path.write_bytes(data)

    harms = {
        "is damaged: the digest of its part of": flipped,
        "is damaged: it has": lambda path: path.write_bytes(path.read_bytes()[:-1]),
        "is missing": lambda path: path.unlink(),
    }
    for number, (message, harm) in enumerate(harms.items()):
        folder = tmp_path / str(number)
        shutil.copytree(saved, folder)
        harm(part(folder, 1))
        text, is_unchanged = checkpoints.load_damaged(0, str(folder))
        assert message in text
        assert part(saved, 1).name in text
        assert is_unchanged


def test_parts_are_files_that_any_reader_reads(saved: Path) -> None:
    with safe_open(part(saved, 1), "pt") as found:
        assert found.get_tensor("model//state_dict/a".replace("//", "/")).shape == (32, 256)
    with opened(part(saved, 1)) as checkpoint:
        assert len(checkpoint.content) == 6


def index_of(folder: Path) -> tuple[dict[str, str], Any]:
    with safe_open(folder / "run", "pt") as found:
        tensors = {name: found.get_tensor(name) for name in found.keys()}  # noqa: SIM118
        return found.metadata(), tensors


def reindexed(folder: Path, metadata: dict[str, str], tensors: Any) -> None:
    """Write an index with a right digest and anyone's content."""
    entries, data = {}, b""
    for name in sorted(tensors, key=lambda name: -tensors[name].element_size()):
        value = tensors[name]
        start, data = len(data), data + value.numpy().tobytes()
        kind = {8: "I64", 4: "F32", 1: "U8"}[value.element_size()]
        span = [start, len(data)]
        entries[name] = {"dtype": kind, "shape": [*value.shape], "data_offsets": span}
    more = {key: x for key, x in metadata.items() if key not in ("content", "sha256")}
    forged(folder / "run", metadata["content"], entries, data, more)


@pytest.mark.parametrize(
    "name",
    ["/etc/hostname", "../run.0123456789abcdef.0-of-2.part", "run", "a/b.part", "..", "", 3, None],
)
def test_an_index_names_no_files_elsewhere(saved: Path, tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    metadata, tensors = index_of(folder)
    files = json.loads(metadata["files"])
    files[1][0] = name
    reindexed(folder, {**metadata, "files": json.dumps(files)}, tensors)
    text, is_unchanged = checkpoints.load_damaged(0, str(folder))
    assert "which can't be one" in text
    assert is_unchanged


def test_a_part_that_is_no_file_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    path = part(folder, 1)
    path.unlink()
    os.mkfifo(path)
    text, is_unchanged = checkpoints.load_damaged(0, str(folder))
    assert "is damaged" in text
    assert is_unchanged


def test_an_index_that_lies_is_refused(saved: Path, tmp_path: Path) -> None:
    """Whatever stands in its tables: an error that says so, or (nothing of weight) the same."""
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    metadata, tensors = index_of(folder)
    reindexed(folder, metadata, tensors)
    assert checkpoints.load_damaged(0, str(folder)) == ("", False)
    chance = random.Random(0)
    odd = [-1, 0, 1, 2, 64, 2**31, 2**62, -(2**63)]
    for _ in range(150):
        places, digests = tensors[PLACES].clone(), tensors[DIGESTS].clone()
        sharded = json.loads(metadata["sharded"])
        entry = sharded[chance.choice([*sharded])]
        kind = chance.randrange(4)
        if kind == 0:
            places[chance.randrange(len(places))] = chance.choice(odd)
        elif kind == 1:
            digests[chance.randrange(len(digests))] ^= 1
        elif kind == 2:
            entry[chance.randrange(len(entry))] = chance.choice(
                [*odd, None, "F32", "BF16", [], [64, 256]]
            )
        else:
            entry[1][chance.randrange(len(entry[1]))] = chance.choice([*odd, None, 1.5, "a"])
        changed = {**metadata, "sharded": json.dumps(sharded)}
        is_same = sharded == json.loads(metadata["sharded"]) and (
            torch.equal(places, tensors[PLACES]) and torch.equal(digests, tensors[DIGESTS])
        )
        reindexed(folder, changed, {**tensors, PLACES: places, DIGESTS: digests})
        text, is_unchanged = checkpoints.load_damaged(0, str(folder))
        assert is_same or (text and is_unchanged), (kind, entry, places)


def test_an_index_of_other_tables_is_refused(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(saved, folder)
    metadata, tensors = index_of(folder)
    short = {**tensors, PLACES: tensors[PLACES][:3]}
    floats = {**tensors, PLACES: torch.zeros(4)}
    lacking = {key: value for key, value in tensors.items() if key != DIGESTS}
    for changed in (short, floats, lacking):
        reindexed(folder, metadata, changed)
        text, is_unchanged = checkpoints.load_damaged(0, str(folder))
        assert "is damaged" in text
        assert is_unchanged
    for files, sharded in (("[]", "{}"), ("{", "["), ("[1]", "{}"), ("[]", "[]"), ("5", "3")):
        reindexed(folder, {**metadata, "files": files, "sharded": sharded}, tensors)
        assert checkpoints.load_damaged(0, str(folder))[0]


def test_boxes_cover_a_tensor_or_not() -> None:
    left, right = [(0, 2), (0, 3)], [(0, 2), (3, 5)]
    assert cover_problem((2, 5), [left, right]) is None
    assert cover_problem((), [[]]) is None
    assert cover_problem((0, 3), []) is None
    assert "elements" in str(cover_problem((2, 5), [left]))
    assert "overlap" in str(cover_problem((2, 6), [left, left]))
    assert "within" in str(cover_problem((2, 4), [left, right]))


def test_meshes_of_two_dimensions(tmp_path: Path) -> None:
    for wrong in ranks(4).run(checkpoints.on_a_grid, str(tmp_path)):
        assert wrong == []


@pytest.mark.parametrize("point", killed_saving.POINTS)
def test_a_rank_killed_while_saving_leaves_a_whole_checkpoint(
    point: str, killings: dict[str, Any]
) -> None:
    folder, outcomes = killings[point]
    who = killed_saving.POINTS[point]
    assert outcomes[who] == -signal.SIGKILL
    if point != "after the index":
        assert outcomes[1 - who] == killed_saving.HEARD
    extra = steprule.load_training(folder / "run").extra
    assert extra == ("second" if point == "after the index" else "first")
    run = killed_saving.plain_run()
    steprule.load_training(folder / "run", model=run.model, optimizer=run.optimizer)
    assert all(
        entry["step"] == (2 if extra == "second" else 1) for entry in run.optimizer.state.values()
    )


@pytest.fixture(scope="module")
def killings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Have ranks die at every point; return where, and how each of the two has ended."""
    folder = tmp_path_factory.mktemp("killed")
    command = [sys.executable, killed_saving.__file__, str(folder)]
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    both = [
        subprocess.Popen([*command, str(rank)], env=environment, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    return {p: (folder / p.replace(" ", "-"), [each[p] for each in told]) for p in told[0]}


def test_lbfgs_goes_on_anywhere(tmp_path: Path) -> None:
    before = ranks(2).run(checkpoints.save_lbfgs, str(tmp_path))
    at, there = before[0]
    for size, tolerance in ((2, 0.0), (1, 1e-9)):
        for found in ranks(size).run(checkpoints.go_on_lbfgs, str(tmp_path), at):
            for one, other in zip(there, found, strict=True):
                assert torch.allclose(one, other, rtol=tolerance, atol=tolerance)
