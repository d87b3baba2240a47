"""N steps are N/2, a file, a new process, and N/2 more: bit for bit.

Every optimizer in every format on every engine, and with every schedule and scheduler; the new
process resumes all of them at once.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import resuming
from nested_values import same
from resuming import HALF, WHOLE, Run, cases

import steprule
from steprule.schedules.base import _kinds


def save_halves(chosen: list[resuming.Resumed], file: Path) -> None:
    runs = {case.text: Run(case) for case in chosen}
    for run in runs.values():
        run.steps(0, HALF)
    steprule.save_training(file, **resuming.parts_of(runs))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("resumed")
    save_halves(cases(), folder / "runs")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, resuming.__file__, str(folder)]
    subprocess.run(command, check=True, env=environment, timeout=600)
    return steprule.load_training(folder / "outcomes").extra


@pytest.mark.parametrize("name", sorted({case.name for case in cases()}))
def test_resumed_is_uninterrupted(name: str, outcomes: Any) -> None:
    for case in [case for case in cases() if case.name == name]:
        run = Run(case)
        run.steps(0, WHOLE)
        assert same(outcomes[case.text], run.outcome()), case.text


def test_every_scheduler_is_among_the_cases() -> None:
    classes = [getattr(steprule.lr_scheduler, name) for name in steprule.lr_scheduler.__all__]
    names = {x.__name__ for x in classes if isinstance(x, type)} - {"LRScheduler"}
    assert {*resuming.SCHEDULERS} == {*names, "SWALR"}


def test_every_schedule_is_among_the_cases() -> None:
    written = "".join(repr(make()) for make in resuming.SCHEDULES.values())
    ours = {name for name, kind in _kinds.items() if kind.__module__.startswith("steprule.")}
    assert not {name for name in ours if f"{name}(" not in written} - {"scaled"}


def test_a_file_goes_on_on_any_engine(tmp_path: Path) -> None:
    """What one engine saved, another resumes as if it had stepped all along."""
    case = next(case for case in cases() if (case.name, case.engine) == ("Adam", "eager"))
    save_halves([case], tmp_path / "eager")
    (on_eager,) = resuming.resumed([case], tmp_path / "eager").values()
    on_fused = Run(case._replace(engine="fused"), seed=1)
    parts = resuming.parts_of({case.text: on_fused})
    steprule.load_training(tmp_path / "eager", **parts)
    on_fused.steps(HALF, WHOLE)
    for name, param in on_eager.params.items():
        # float32's rounding in another order, over three steps.
        assert (param - on_fused.params[name]).abs().max() < 1e-6
