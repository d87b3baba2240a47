"""What engines do not show: the compiler, the native loops, a checkpoint written and read."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from steprule.doctor import compiling, trials
from steprule.doctor.finding import Finding, note, problem
from steprule.engines.native.switch import VARIABLE, why_off
from steprule.rules import Adam
from steprule.training.runs import load_training, save_training

SECTION = compiling.SECTION
_SLOWER = "steps are right, and slower"


def self_test() -> Iterator[Finding]:
    """Yield what came of each part."""
    yield compiling.compiler()
    yield _native_loops()
    yield _round_trip()


def _native_loops() -> Finding:
    name = "native loops"
    if why_off() is None:
        try:
            from steprule.engines.native.loops import enable_native, is_native_enabled

            enable_native()
            is_native_enabled()  # which finds out, and keeps why not
        except (ImportError, OSError, RuntimeError) as error:
            advice = compiling.SLOWER_BY_IT if compiling.is_failing() else _SLOWER
            return note(SECTION, name, f"off: {error}", advice)
    reason = why_off()
    if reason is None:
        return Finding(SECTION, name, "on")
    advice = _SLOWER
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
