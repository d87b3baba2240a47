"""Kernels on disk: reused without compiling, damaged files made anew, no folder needed; fork.

And that nothing is run which another user could have put there.
"""

from __future__ import annotations

import os
import random
import stat
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from steprule.engines.kernel_cache import cache as kernel_cache
from steprule.engines.kernel_cache import folder as folders

STEP = """
import sys, torch, steprule
param = torch.ones(5, requires_grad=True)
param.grad = torch.ones(5)
optimizer = steprule.SGD([param], lr=0.25)
optimizer.step()
assert optimizer.explain().rows[0].engine == "fused"
print(param.tolist() == [0.75] * 5, "steprule.engines.compiler.lowering" in sys.modules)
"""


def run(script: str, folder: Path | str) -> str:
    """What a new process prints, with its kernels kept in ``folder``."""
    environment = {**os.environ, "STEPRULE_CACHE_DIR": str(folder)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_second_process_does_not_need_the_compiler(tmp_path: Path) -> None:
    assert run(STEP, tmp_path) == "True True"
    assert run(STEP, tmp_path) == "True False"


@pytest.mark.parametrize(
    "damage", [b"", b"\n\n\n", b"garbage" * 100], ids=["empty", "lines", "noise"]
)
def test_damaged_files_are_made_anew(tmp_path: Path, damage: bytes) -> None:
    run(STEP, tmp_path)
    files = list(tmp_path.rglob("*.kernel"))
    assert files
    for file in files:
        content = file.read_bytes()
        file.write_bytes(content[: len(content) // 2] + damage)
    assert run(STEP, tmp_path) == "True True"
    assert run(STEP, tmp_path) == "True False"


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    assert run(STEP, blocked) == "True True"


def test_two_processes_may_fill_the_cache_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "STEPRULE_CACHE_DIR": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", STEP], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    assert [p.communicate()[0].split()[0] for p in started] == [b"True", b"True"]
    assert not list(tmp_path.rglob("tmp*"))


FORK = """
import os, warnings, torch, steprule
warnings.simplefilter("ignore")
torch.set_num_threads(2)
# Made before the fork: torch's own parallel operations are what hangs in a child.
params = [torch.ones(3_000_000, requires_grad=True) for _ in range(2)]
optimizers = []
for param in params:
    param.grad = torch.ones_like(param)
    optimizers.append(steprule.SGD([param], lr=0.25, momentum=0.5))
    optimizers[-1].step()
pid = os.fork()
if pid == 0:
    optimizers[0].step()
    os._exit(0 if params[0][0].item() == params[0][-1].item() == 0.375 else 1)
_, status = os.waitpid(pid, 0)
optimizers[1].step()
print(os.waitstatus_to_exitcode(status), params[1][-1].item() == 0.375)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_step_fork_step_in_the_child() -> None:
    """The parent's threads do not exist in the child: it must not wait for them."""
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["0", "True"], done.stderr


# -- whose folder it is ------------------------------------------------------------------------

SOURCE = "def f(_address, _first, _last):\n    return 0\n"
has_owners = pytest.mark.skipif(not hasattr(os, "getuid"), reason="files have no owners here")


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled, which is not for running."""
    sources: list[str] = []

    def note(source: str, names: object) -> bytes:
        sources.append(source)
        return b"object code of " + source.encode()

    monkeypatch.setattr(kernel_cache, "_compile", note)
    monkeypatch.setattr(folders, "_has_warned", False)
    return sources


@pytest.fixture
def named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kernels where the environment names one."""
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path))
    return tmp_path / "steprule"


@pytest.fixture
def default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of kernels in the user's cache."""
    monkeypatch.delenv("STEPRULE_CACHE_DIR", raising=False)
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "steprule"


def ask() -> bytes:
    """For the kernel of SOURCE."""
    return kernel_cache._load_or_compile(SOURCE, ("f",), "test")


def modes(folder: Path) -> set[int]:
    return {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


@has_owners
def test_the_users_own_cache_is_private(default: Path, compiled: list[str]) -> None:
    ask()
    assert stat.S_IMODE(default.stat().st_mode) == 0o700
    assert modes(default) == {0o600}


@has_owners
def test_an_older_versions_folder_is_made_private(default: Path, compiled: list[str]) -> None:
    default.mkdir(mode=0o755)
    ask()
    assert stat.S_IMODE(default.stat().st_mode) == 0o700


@has_owners
def test_a_folder_that_was_named_may_be_read_by_all_whatever_the_umask(
    named: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STEPRULE_CACHE_DIR", str(tmp_path / "new" / "one"))
    before = os.umask(0)
    try:
        ask()
        ask()
    finally:
        os.umask(before)
    assert len(compiled) == 1
    for folder in (tmp_path / "new", tmp_path / "new" / "one", tmp_path / "new/one/steprule"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert modes(folder) == {0o644}


@has_owners
@pytest.mark.parametrize("which", ["named", "default"])
@pytest.mark.parametrize("place", ["folder", "parent"])
def test_a_folder_that_all_can_write_to_is_not_used(
    which: str, place: str, request: pytest.FixtureRequest, compiled: list[str]
) -> None:
    folder: Path = request.getfixturevalue(which)
    ask()
    open_to_all = folder if place == "folder" else folder.parent
    open_to_all.chmod(0o777)
    before = sorted(folder.iterdir())
    with pytest.warns(RuntimeWarning, match="every user can write to it") as said:
        ask()
    assert str(open_to_all) in str(said[0].message)
    assert "set STEPRULE_CACHE_DIR to" in str(said[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ask()
    assert len(compiled) == 3
    assert not kernel_cache.is_kept(SOURCE)
    assert sorted(folder.iterdir()) == before


@has_owners
def test_a_folder_in_tmp_is_used(named: Path, compiled: list[str]) -> None:
    """There everyone may make files, but nobody may replace another's."""
    named.parent.chmod(0o1777)
    ask()
    ask()
    assert len(compiled) == 1


@has_owners
def test_nothing_is_taken_from_another_user(
    default: Path, compiled: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ask()
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    with pytest.warns(RuntimeWarning, match=f"belongs to another user .uid {owner}."):
        ask()
    assert len(compiled) == 2


@has_owners
@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="root alone has root's")
@pytest.mark.parametrize(("which", "times"), [("named", 1), ("default", 2)])
def test_what_root_has_compiled_is_taken_from_a_named_folder_alone(
    which: str,
    times: int,
    request: pytest.FixtureRequest,
    compiled: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    request.getfixturevalue(which)
    ask()
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ask()
    assert len(compiled) == times


@has_owners
def test_a_link_to_a_folder_of_ones_own_is_followed_and_one_to_a_file_is_not(
    named: Path, compiled: list[str], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    named.symlink_to(tmp_path / "elsewhere")
    ask()
    ask()
    assert len(compiled) == 1
    (file,) = named.glob("*.kernel")
    file.rename(tmp_path / "moved")
    file.symlink_to(tmp_path / "moved")
    ask()
    assert len(compiled) == 2
    assert not file.is_symlink()


@has_owners
def test_files_that_others_can_write_to_and_pipes_are_not_read(
    named: Path, compiled: list[str]
) -> None:
    ask()
    (file,) = named.glob("*.kernel")
    file.chmod(0o666)
    ask()
    assert len(compiled) == 2
    file.unlink()
    os.mkfifo(file)
    ask()
    assert len(compiled) == 3


def test_whatever_bit_is_damaged_the_code_is_whole(named: Path, compiled: list[str]) -> None:
    code = ask()
    (file,) = named.glob("*.kernel")
    whole, chance = file.read_bytes(), random.Random(0)
    for i in range(300):
        damaged = bytearray(whole)
        if i % 3 == 0:
            del damaged[chance.randrange(len(whole)) :]
        else:
            for _ in range(i % 3):
                damaged[chance.randrange(len(whole))] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        assert ask() == code
        assert file.read_bytes() == whole


# -- where nothing can be kept -----------------------------------------------------------------

FULL = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
"""


def run_in(environment: dict[str, str], script: str) -> str:
    """What a process prints; nothing on stderr."""
    known = {k: v for k, v in os.environ.items() if k not in ("STEPRULE_CACHE_DIR", "HOME")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**known, "PYTHONDONTWRITEBYTECODE": "1", **environment},
        check=False,
        timeout=300,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform == "win32", reason="no such limit")
def test_a_full_disk_only_costs_time(tmp_path: Path) -> None:
    assert run_in({"STEPRULE_CACHE_DIR": str(tmp_path)}, FULL + STEP) == "True True"
    assert not list(tmp_path.rglob("*.kernel"))
    assert not list(tmp_path.rglob("tmp*"))


@pytest.mark.skipif(sys.platform == "win32", reason="no such file")
def test_a_home_that_cannot_be_written_only_costs_time() -> None:
    assert run_in({"HOME": "/dev/null", "XDG_CACHE_HOME": ""}, STEP) == "True True"


WRITER = """
import sys
from steprule.engines.kernel_cache.folder import kernel_folder
folder = kernel_folder()
while True:
    for letter in b"ab":
        folder.write("one.kernel", bytes([letter]) * 3_000_000)
        print(flush=True)
"""


def test_a_process_that_is_killed_leaves_whole_files(named: Path) -> None:
    chance = random.Random(0)
    with subprocess.Popen([sys.executable, "-c", WRITER], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        for _ in range(chance.randrange(3, 40)):
            writer.stdout.readline()
        writer.kill()
    assert set((named / "one.kernel").read_bytes()) in ({ord("a")}, {ord("b")})
    assert (named / "one.kernel").stat().st_size == 3_000_000
