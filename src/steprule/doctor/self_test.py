"""What engines do not show: the compiler, the native loops, a checkpoint written and read."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from steprule.doctor import trials
from steprule.doctor.finding import Finding, note, problem
from steprule.engines.native.switch import VARIABLE, why_off
from steprule.rules import Adam
from steprule.training.runs import load_training, save_training

SECTION = "self-test"
_SOURCE = """
def answer(control, a, b, c):
    total = 0
    for i in range(a):
        total += b
    return total + c
"""


def self_test() -> Iterator[Finding]:
    """Yield what came of each part."""
    yield _compiler()
    yield _native_loops()
    yield _round_trip()


def _compiler() -> Finding:
    """Compile a kernel that is not on disk, and run it."""
    try:
        from steprule.engines.compiler import compile_kernels
        from steprule.engines.kernel_cache.cache import Library

        began = time.perf_counter()
        code = compile_kernels(_SOURCE, ("answer",), reorders_sums=False)
        answer = Library(code, ("answer",), arity=4, keeps_gil=False).functions[0]
        found, took = answer(0, 5, 7, 7), time.perf_counter() - began
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what was looked for
        return problem(
            SECTION,
            "compiler",
            f"fails: {type(error).__name__}: {error}",
            "pip install --force-reinstall llvmlite; steps run on other engines meanwhile, slower",
        )
    if found != 42:
        return problem(SECTION, "compiler", f"wrong: got {found} for 42", "please report this")
    return Finding(SECTION, "compiler", f"a kernel compiled and run in {took:.2f} s")


def _native_loops() -> Finding:
    name = "native loops"
    if why_off() is None:
        try:
            from steprule.engines.native.loops import enable_native, is_native_enabled

            enable_native()
            is_native_enabled()  # which finds out, and keeps why not
        except (ImportError, OSError, RuntimeError) as error:
            return note(SECTION, name, f"off: {error}", "steps are right, and slower")
    reason = why_off()
    if reason is None:
        return Finding(SECTION, name, "on")
    advice = "steps are right, and slower"
    if reason.startswith(f"{VARIABLE}="):
        advice += f": unset {VARIABLE}"
    return note(SECTION, name, f"off: {reason}", advice)


def _round_trip() -> Finding:
    """Save a run, load it into new objects, and compare the steps that follow."""
    name, middle, device = "checkpoint", trials.STEPS // 2, torch.device("cpu")
    try:
        model, resumed = _model(), _model()
        optimizer, other = (Adam(x.parameters(), lr=trials.LR) for x in (model, resumed))
        trials.take_steps(optimizer, model[0], 1, middle)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "run.safetensors"
            save_training(file, model=model, optimizer=optimizer)
            load_training(file, model=resumed, optimizer=other)
        trials.take_steps(optimizer, model[0], middle + 1, trials.STEPS)
        trials.take_steps(other, resumed[0], middle + 1, trials.STEPS)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what was looked for
        return problem(SECTION, name, f"fails: {type(error).__name__}: {error}")
    if not torch.equal(model[0], resumed[0]):
        return problem(SECTION, name, "wrong: a resumed run differs", "please report this")
    return Finding(SECTION, name, f"saved, loaded and went on, bit for bit ({device.type})")


def _model() -> torch.nn.ParameterList:
    return torch.nn.ParameterList([trials.start(torch.device("cpu"))])
