"""Optimizers in several threads, forks while threads step or compile, and other processes.

Each thread has an optimizer of its own. Whatever the others do, it gives what it gives alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ENGINES, Case, gradients, make_params
from torch import Tensor

import steprule

THREADS = 4
CASES = (
    Case("Adam", {"amsgrad": True}),
    Case("SGD", {"momentum": 0.9}),
    Case("LAMB", {"clip_grad_norm": 1.0}),
    Case("Muon", {}),
    Case("Adafactor", {}),
    Case("Prodigy", {}),
    Case("AdamW", {"state_format": "int8"}),
)


def trained(case: Case, engine: str, seed: int, steps: int) -> list[Tensor]:
    """Parameters and state after some steps."""
    params = make_params(case.name, seed=seed)
    options = {} if engine == "auto" else {"engine": engine}
    optimizer = case.ours(params, **case.options, **options)
    for _ in gradients(params, steps, seed + 1):
        optimizer.step()
    state = optimizer.state_dict()["state"]
    values = [value for entry in state.values() for value in entry.values()]
    return [p.detach() for p in params] + [torch.as_tensor(value) for value in values]


def in_threads(case: Case, engine: str, steps: int) -> list[Any]:
    """What comes of it in each of several threads that begin together."""
    found: list[Any] = [None] * THREADS
    start = threading.Barrier(THREADS)

    def work(i: int) -> None:
        start.wait()
        try:
            found[i] = trained(case, engine, i, steps)
        except BaseException as error:  # noqa: BLE001  # shown by the thread that asserts
            found[i] = error

    threads = [threading.Thread(target=work, args=(i,)) for i in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


@pytest.mark.filterwarnings("ignore:.*runs on engine")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("engine", ENGINES)
def test_in_several_threads_each_is_as_alone(case: Case, engine: str) -> None:
    if engine == "triton" and case.name != "SGD":
        pytest.skip("interpreted kernels: one of them is enough")
    # Interpreted kernels are slow, and so are products in several threads that have torch's own.
    steps = 2 if engine == "triton" else 4 if case.name == "Muon" else 30
    for i, found in enumerate(in_threads(case, engine, steps)):
        assert not isinstance(found, BaseException), found
        alone = trained(case, engine, i, steps)
        assert len(found) == len(alone)
        assert all(torch.equal(x, y) for x, y in zip(found, alone, strict=True))


def run(script: str, folder: Path) -> str:
    """What a new process prints that has no kernels yet."""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={**os.environ, "STEPRULE_CACHE_DIR": str(folder)},
        cwd=Path(__file__).parent,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


FROM_NOTHING = """
import torch
from test_threads import CASES, in_threads, trained
for case in CASES[:2]:
    for i, found in enumerate(in_threads(case, "fused", 5)):
        assert not isinstance(found, BaseException), found
        assert all(map(torch.equal, found, trained(case, "fused", i, 5)))
print("equal")
"""


def test_threads_that_compile_at_once(tmp_path: Path) -> None:
    assert run(FROM_NOTHING, tmp_path) == "equal"


FORKS = """
import os, threading, warnings, torch
import steprule
from test_threads import CASES, trained
warnings.simplefilter("ignore")  # that there are threads, on newer Pythons
torch.set_num_threads(1)  # torch's own threads do not survive a fork
adam, sgd, _, muon = CASES[:4]
expected = {case.name: trained(case, "auto", 5, 4) for case in (adam, muon)}
done = threading.Event()
def work(case, i):
    while not done.is_set():
        trained(case, "auto", i, 5)
threads = [threading.Thread(target=work, args=(c, i)) for i, c in enumerate((adam, sgd, muon))]
for thread in threads:
    thread.start()
codes = set()
for i in range(6):
    pid = os.fork()
    if pid == 0:
        case = (adam, muon)[i % 2]
        found = trained(case, "auto", 5, 4)
        # A rule whose kernel this process has not: it must be compiled here.
        fresh = trained(type(case)("Rprop", {}), "auto", i, 2) if i == 5 else ()
        os._exit(0 if all(map(torch.equal, found, expected[case.name])) else 1)
    codes.add(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
done.set()
for thread in threads:
    thread.join()
print(codes)
"""
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")


@needs_fork
def test_a_fork_while_others_step(tmp_path: Path) -> None:
    assert run(FORKS, tmp_path) == "{0}"


FORK_IN_A_COMPILATION = """
import os, threading, warnings, torch
import steprule
from steprule.engines.compiler import lock
from steprule.engines.kernel_cache import cache
from test_threads import CASES, trained
warnings.simplefilter("ignore")
torch.set_num_threads(1)
real = cache._compile
def fork_while_compiling(case, in_child, is_patient):
    begun, forked = threading.Event(), threading.Event()
    def compile(source, names):
        begun.set()
        if not is_patient:
            forked.wait()  # a lock that is not let go of until the fork is done
        return real(source, names)
    cache._compile = compile
    thread = threading.Thread(target=trained, args=(case, "fused", 0, 3))
    thread.start()
    begun.wait()
    pid = os.fork()
    if pid == 0:
        cache._compile = real
        trained(in_child, "fused", 0, 3)
        os._exit(0)
    forked.set()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    thread.join()
    return code
waited = fork_while_compiling(CASES[0], CASES[1], True)
lock.PATIENCE = 0.01
print(waited, fork_while_compiling(CASES[2], CASES[4], False))
"""


@needs_fork
def test_a_fork_in_the_midst_of_a_compilation(tmp_path: Path) -> None:
    """It waits for the compiler; also where the compiler, after a while, still waits for it."""
    assert run(FORK_IN_A_COMPILATION, tmp_path) == "0 0"


@needs_fork
def test_a_child_finds_the_lock_of_a_runner_free() -> None:
    """Another thread was stepping the same optimizer: its parameters are not to be relied on."""
    params = [torch.ones(4, 4, requires_grad=True)]
    params[0].grad = torch.ones(4, 4)
    optimizer = steprule.Muon(params, engine="fused")
    optimizer.step()
    (runner,) = optimizer._plan.runners
    with runner._lock:
        runner._process = -1  # as it is in a child
        optimizer.step()
    assert runner._process == os.getpid()


SPAWNED = """
import multiprocessing, pickle, sys, torch, steprule

def go_on(pickled, results):
    optimizer = pickle.loads(pickled)
    results.put(ends(optimizer))

def ends(optimizer):
    (param,) = optimizer.param_groups[0]["params"]
    for i in range(3):
        param.grad = torch.full((5,), 0.5 - i)
        optimizer.step()
    return param.tolist(), optimizer.state[param]["exp_avg"].tolist()

if __name__ == "__main__":
    optimizer = steprule.Adam([torch.ones(5, requires_grad=True)], lr=0.1)
    ends(optimizer)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    child = context.Process(target=go_on, args=(pickle.dumps(optimizer), results))
    child.start()
    found = results.get(timeout=300)
    child.join()
    print(found == ends(optimizer))
"""


def test_a_pickled_optimizer_goes_on_in_a_process_of_its_own(tmp_path: Path) -> None:
    script = tmp_path / "spawned.py"
    script.write_text(SPAWNED)
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.split() == ["True"], done.stderr
