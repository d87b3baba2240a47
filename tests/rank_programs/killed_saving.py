"""Two ranks that save twice, one of which is killed in the second: at every point in turn.

Run as ``python killed_saving.py FOLDER RANK``; each point is a process of its own, forked from one
that has imported all. What is printed says how each has ended.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

import steprule
from rank_programs.dcp import Case, Run
from steprule.checkpoints import on_ranks

#: Where a rank is killed, and which.
POINTS = {
    "before its part": 1,
    "within its part": 1,
    "after its part": 1,
    "before its table": 1,
    "within the index": 0,
    "after the index": 0,
}
#: How one ends that has been told that the other is gone.
HEARD = 7
CASE = Case("AdamW", {}, "large")


def plain_run() -> Run:
    """A run in plain tensors."""
    return Run(CASE, is_sharded=False, seed=1)


def _killed(*_: Any, **__: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(point: str) -> None:
    """Have this process killed at a point."""
    saving: Any = on_ranks._Saving
    if point == "before its part":
        saving._write_part = _killed
    elif point in ("within its part", "within the index"):
        kept = on_ranks.write_to

        def half(file: Any, *args: Any, **keywords: Any) -> Any:
            if bool(keywords) is (point == "within its part"):
                write, count = file.write, 0

                class Half:
                    def __getattr__(self, name: str) -> Any:
                        return getattr(file, name)

                    def write(self, data: Any) -> Any:
                        nonlocal count
                        count += 1
                        if count > 2:
                            file.flush()
                            _killed()
                        return write(data)

                return kept(Half(), *args, **keywords)
            return kept(file, *args, **keywords)

        on_ranks.write_to = half
    elif point == "after its part":
        write_part = saving._write_part

        def written(*args: Any) -> Any:
            write_part(*args)
            _killed()

        saving._write_part = written
    elif point == "before its table":
        gathered, calls = saving._gathered, []

        def second(self: Any, value: Any) -> Any:
            calls.append(value)
            return _killed() if len(calls) == 2 else gathered(self, value)

        saving._gathered = second
    else:
        on_ranks.remove_parts = _killed  # type: ignore[assignment]


def _save_twice(folder: Path, rank: int, point: str) -> None:
    folder.mkdir(exist_ok=True)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", store, rank=rank, world_size=2, timeout=timedelta(seconds=10))
    run = Run(CASE, is_sharded=True)
    parts = {"model": run.model, "optimizer": run.optimizer}
    run.steps(0, 1)
    steprule.save_training(folder / "run", **parts, extra="first")
    run.steps(1, 2)
    if POINTS[point] == rank:
        _arm(point)
    try:
        steprule.save_training(folder / "run", **parts, extra="second")
    except RuntimeError as problem:
        if "one of them may be gone" in str(problem):
            os._exit(HEARD)
        raise


def main(folder: Path, rank: int) -> None:
    """Die as often as there are points."""
    torch.set_num_threads(1)
    ends = {}
    for point in POINTS:
        child = os.fork()
        if not child:
            try:
                _save_twice(folder / point.replace(" ", "-"), rank, point)
                os._exit(0)
            except BaseException as problem:  # noqa: BLE001
                print(repr(problem), file=sys.stderr, flush=True)
                os._exit(1)
        ends[point] = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps(ends))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
