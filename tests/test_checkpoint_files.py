"""The file: any nested value comes back, any damage is found, and a kill leaves the old or the new.

The scenarios are real: bits flipped in the file, its end cut off at every length, a process killed
while it saves, a limit on the size of files in place of a full disk.
"""

from __future__ import annotations

import errno
import math
import os
import random
import resource
import signal
from collections import Counter
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from forged_checkpoints import forged
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nested_values import same
from safetensors import safe_open

import steprule
from steprule.checkpoints.file import opened, write
from steprule.checkpoints.nested import DTYPES
from steprule.state.copying import own_copy


def read(path: Path) -> Any:
    with opened(path) as checkpoint:
        return own_copy(checkpoint.content)


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from([torch.ones(3), torch.tensor(2.0), torch.zeros(0, 2, dtype=torch.int64)])
)
KEYS = st.text(max_size=8) | st.integers() | st.floats(allow_nan=False) | st.booleans()
NESTED = st.recursive(
    PLAIN,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(KEYS, inner, max_size=3)
    ),
    max_leaves=8,
)


@given(NESTED)
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_is_written_is_read(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "file"
    write(path, value, {})
    assert same(read(path), value)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.complex64, torch.complex128], ids=str)
def test_every_dtype_comes_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(4 * size, dtype=torch.uint8)
    tensor = (raw % 2).bool()[:4] if dtype is torch.bool else raw.view(dtype)
    found = {"value": tensor, "transposed": tensor.reshape(2, 2).t(), "one": tensor[0]}
    if dtype.is_complex:
        found["conjugate"] = tensor.conj()
    if dtype.is_floating_point and size > 1:
        found["negative"] = torch._neg_view(tensor)
    write(tmp_path / "file", found, {})
    assert same(read(tmp_path / "file"), found)


def test_arrays_and_numbers_of_numpy(tmp_path: Path) -> None:
    given_value = {"a": np.arange(6.0)[::-2], "b": np.float32(0.5), "c": np.int64(3)}
    write(tmp_path / "file", given_value, {})
    found = read(tmp_path / "file")
    assert same(found, {"a": np.array([5.0, 3.0, 1.0]), "b": 0.5, "c": 3})
    found["a"][0] = 1  # memory of its own


def test_a_tensor_that_stands_twice_is_stored_once(tmp_path: Path) -> None:
    tensor = torch.randn(1000)
    write(tmp_path / "file", {"a": tensor, "b": [tensor, tensor[:500]]}, {})
    assert (tmp_path / "file").stat().st_size < 1700 * 4
    found = read(tmp_path / "file")
    assert same(found, {"a": tensor, "b": [tensor, tensor[:500]]})


def test_any_reader_of_safetensors_reads_the_tensors(tmp_path: Path) -> None:
    param = torch.ones(3, requires_grad=True)
    optimizer = steprule.Adam([("w", param)])
    param.grad = torch.ones(3)
    optimizer.step()
    optimizer.save(tmp_path / "file")
    with safe_open(str(tmp_path / "file"), framework="pt") as file:
        names = {name.rpartition("/")[2] for name in file.keys()}  # noqa: SIM118
        assert names == {"step", "exp_avg", "exp_avg_sq"}
        metadata = file.metadata()
    assert metadata["optimizer"] == "Adam"
    assert metadata["made_by"].startswith("steprule 0.")
    assert metadata["steprule"] == "1"


class Odd:
    pass


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"extra": {"foo": Odd()}},
            r"extra\['foo'\] is of type Odd, which a checkpoint can't hold",
        ),
        ([{1, 2}], "0 is of type set"),
        ({"a": torch.empty(2, device="meta")}, "a is a meta tensor"),
        ({"a": torch.eye(2).to_sparse()}, "a is a torch.sparse_coo tensor: .*dense ones"),
        ({"a": np.array([Odd()])}, "a is an array of object"),
        (lambda x: x, "the value is of type function"),
    ],
)
def test_what_cannot_be_held_is_named(tmp_path: Path, value: Any, message: str) -> None:
    (tmp_path / "file").write_bytes(b"as it was")
    with pytest.raises(TypeError, match=message):
        write(tmp_path / "file", value, {})
    assert [x.name for x in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"as it was"


def test_a_value_within_itself_is_refused(tmp_path: Path) -> None:
    value: list[Any] = []
    value.append(value)
    with pytest.raises(TypeError, match="more than 64 deep"):
        write(tmp_path / "file", value, {})


def small_file(folder: Path) -> Path:
    param = torch.ones(2, requires_grad=True)
    optimizer = steprule.SGD([("w", param)], lr=0.1, momentum=0.9)
    param.grad = torch.ones(2)
    optimizer.step()
    optimizer.save(folder / "small")
    return folder / "small"


def test_the_end_cut_off_at_every_length(tmp_path: Path) -> None:
    whole = small_file(tmp_path).read_bytes()
    cut = tmp_path / "cut"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(steprule.CheckpointError), opened(cut):
            pass
    cut.write_bytes(whole + b"\0")
    with pytest.raises(steprule.CheckpointError), opened(cut):
        pass


def test_any_flipped_bit_is_found(tmp_path: Path) -> None:
    whole = small_file(tmp_path).read_bytes()
    flipped = tmp_path / "flipped"
    places = random.Random(0).sample(range(8 * len(whole)), 1500)
    for place in places:
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        flipped.write_bytes(data)
        with pytest.raises(steprule.CheckpointError), opened(flipped):
            pass


@pytest.mark.parametrize(
    "plain",
    [
        {"tensor": "none of this name"},
        {"tensor": 3},
        {"unknown": 3},
        {},
        {"dict": 3},
        {"dict": [[1, 2]]},
        {"items": [[1]]},
        {"items": [[[1], 2]]},  # a list as a key
        {"tuple": 3},
        {"float": "1.5"},
        {"float": [1]},
        {"complex": {"tensor": "a"}},
        [[{"tuple": [{}]}]],
        {"a": 1, "b": 2},
    ],
    ids=str,
)
def test_content_that_stands_for_nothing_is_refused(tmp_path: Path, plain: Any) -> None:
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    path = forged(tmp_path / "forged", plain, {"a": entry}, b"\0" * 12)
    with pytest.raises(steprule.CheckpointError, match="is damaged"), opened(path):
        pass


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nan",
        "{",
        "[" * 100_000,
        "[" * 400 + "]" * 400,
        "1e999",
        "9" * 10_000,
        '"\\ud800"[',
        "-",
    ],
    ids=lambda text: text[:8],
)
def test_content_that_is_no_json_is_refused(tmp_path: Path, text: str) -> None:
    path = forged(tmp_path / "forged", text)
    with pytest.raises(steprule.CheckpointError), opened(path):
        pass


@pytest.mark.parametrize(
    ("entry", "data"),
    [
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}, b"\0" * 8),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}, b"\0" * 12),
        ({"dtype": "F32", "shape": [2**62, 2**62], "data_offsets": [0, 12]}, b"\0" * 12),
        ({"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}, b"\0" * 12),
        ({"dtype": "F32", "shape": [3], "data_offsets": [12, 24]}, b"\0" * 24),
        ({"dtype": "F99", "shape": [3], "data_offsets": [0, 12]}, b"\0" * 12),
        ({"dtype": "F32"}, b"\0" * 12),
        (7, b""),
    ],
    ids=str,
)
def test_headers_that_lie_are_refused(tmp_path: Path, entry: Any, data: bytes) -> None:
    path = forged(tmp_path / "forged", {"tensor": "a"}, {"a": entry}, data)
    with pytest.raises(steprule.CheckpointError, match="is damaged"), opened(path):
        pass


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "file"
    torch.save({"state": {}}, path)
    with pytest.raises(steprule.CheckpointError, match=r"no safetensors file|can't be read"):
        steprule.Adam([torch.ones(1, requires_grad=True)]).load(path)
    save_file({"a": torch.ones(2)}, path)
    with pytest.raises(steprule.CheckpointError, match="can't be read"), opened(path):
        pass
    save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})
    with pytest.raises(steprule.CheckpointError, match="no checkpoint of steprule"), opened(path):
        pass
    with pytest.raises(FileNotFoundError), opened(tmp_path / "none"):
        pass


def test_a_file_of_a_later_format_names_its_maker(tmp_path: Path) -> None:
    write(tmp_path / "file", 1, {"made_by": "steprule 9.9"})
    data = (tmp_path / "file").read_bytes().replace(b'"steprule":"1"', b'"steprule":"7"')
    (tmp_path / "file").write_bytes(data)
    with pytest.raises(steprule.CheckpointError, match=r"format 7, .*made by steprule 9\.9"):
        read(tmp_path / "file")


def versioned(number: int) -> dict[str, Any]:
    return {"number": number, "tensors": [torch.full((20_000,), float(number)) for _ in range(4)]}


def save_on_and_on(path: Path, progress: int) -> None:
    """Save version after version, telling of every piece that is written and every flush."""
    from steprule.checkpoints import file

    def slowly(tensor: torch.Tensor) -> Iterator[memoryview]:
        for piece in pieces(tensor):
            for start in range(0, len(piece), 20_000):
                os.write(progress, b".")
                yield piece[start : start + 20_000]

    def flushed(descriptor: int) -> None:
        os.write(progress, b".")
        flush(descriptor)
        os.write(progress, b".")

    pieces, file._pieces = file._pieces, slowly
    flush, os.fsync = os.fsync, flushed
    number = read(path)["number"]
    while True:
        number += 1
        write(path, versioned(number), {})


def test_a_kill_at_any_moment_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, versioned(0), {})
    generator = random.Random(0)
    seen = set()
    for _ in range(200):
        told, telling = os.pipe()
        child = os.fork()
        if child == 0:
            save_on_and_on(path, telling)
        os.close(telling)
        for _ in range(generator.randrange(1, 50)):  # a save tells of 20 pieces and flushes
            os.read(told, 1)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(told)
        found = read(path)
        assert same(found, versioned(found["number"]))
        seen.add(found["number"])
    assert len(seen) > 100
    # What the killed ones left is removed by the next who saves, once it is a minute old.
    for left in tmp_path.iterdir():
        os.utime(left, (1, 1))
    (tmp_path / ".file.backup.partial").touch()  # a user's own
    write(path, versioned(1), {})
    assert sorted(x.name for x in tmp_path.iterdir()) == [".file.backup.partial", "file"]


def test_a_file_that_another_process_is_writing_is_left_alone(tmp_path: Path) -> None:
    from steprule.checkpoints.replacing import replacing

    path = tmp_path / "file"
    with replacing(path) as file:
        file.write(b"slow")
        file.flush()
        for left in tmp_path.iterdir():
            os.utime(left, (1, 1))  # for longer than a minute
        write(path, 1, {})  # another writer, meanwhile
        assert len(list(tmp_path.iterdir())) == 2
    assert path.read_bytes() == b"slow"


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path, versioned(0), {})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
            write(path, versioned(1), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert same(read(path), versioned(0))
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_links_are_followed_and_folders_refused(tmp_path: Path) -> None:
    write(tmp_path / "real", 1, {})
    (tmp_path / "link").symlink_to(tmp_path / "real")
    write(tmp_path / "link", 2, {})
    assert (tmp_path / "link").is_symlink()
    assert read(tmp_path / "real") == 2
    with pytest.raises(IsADirectoryError, match="is a folder"):
        write(tmp_path, 1, {})
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "file", 1, {})


def test_the_file_is_as_readable_as_others(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    write(tmp_path / "file", math.pi, {})
    assert (tmp_path / "file").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_several_may_save_to_one_place(tmp_path: Path) -> None:
    children = []
    for number in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                for _ in range(60):
                    write(tmp_path / "file", versioned(number), {})
                code = 0
            finally:
                os._exit(code)
        children.append(child)
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    found = read(tmp_path / "file")
    assert same(found, versioned(found["number"]))
    assert [x.name for x in tmp_path.iterdir()] == ["file"]


def test_what_is_no_file_is_not_replaced_and_a_mode_stays(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="no regular file"):
        write(tmp_path / "pipe", 1, {})
    assert (tmp_path / "pipe").is_fifo()
    (tmp_path / "private").touch(mode=0o600)
    write(tmp_path / "private", 1, {})
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600


def test_odd_names_of_files(tmp_path: Path) -> None:
    for name in ("x" * 250, "with space", "ümläut", os.fsdecode(b"\xff\xfe"), "100%", "[a]*"):
        write(tmp_path / name, {"tensor": torch.ones(2)}, {})
        assert same(read(tmp_path / name), {"tensor": torch.ones(2)})


class Letter(str, Enum):
    A = "a"


def test_values_of_kinds_that_are_like_others(tmp_path: Path) -> None:
    odd = {
        "bool": np.bool_(True),
        "letter": Letter.A,
        "counts": Counter([3, 3, 5]),
        "s": np.str_("x"),
    }
    write(tmp_path / "file", odd, {})
    assert same(
        read(tmp_path / "file"),
        {"bool": True, "letter": "a", "counts": Counter({3: 2, 5: 1}), "s": "x"},
    )


def test_freed_memory_is_not_saved(tmp_path: Path) -> None:
    freed = torch.ones(5)
    freed.untyped_storage().resize_(0)
    with pytest.raises(TypeError, match=r"extra\['w'\] has no memory"):
        write(tmp_path / "file", {"extra": {"w": freed}}, {})


def test_one_tensor_named_often_is_one(tmp_path: Path) -> None:
    entry = {"dtype": "F32", "shape": [1000], "data_offsets": [0, 4000]}
    plain = [{"tensor": "a"}] * 50
    found = read(forged(tmp_path / "forged", plain, {"a": entry}, b"\0" * 4000))
    assert len({x.data_ptr() for x in found}) == 1
