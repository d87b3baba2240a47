"""Kernels on disk: reused without compiling, damaged files made anew, no folder needed; fork."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
