"""What saving and loading cost beside torch.save and torch.load: seconds and memory; averages.

``python benchmarks/checkpoints.py`` prints the tables of docs/performance.md: each measurement in a
process of its own, both packages side by side in one run. Memory is the most that the process had
beyond what it ended up with, looked at every 0.2 ms by a thread (pages of files, which the system
takes back when it wants, are not counted).
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import steprule

LAYERS, SIZE = 16, 1 << 20
FORMATS = ("param", "int8")
MIB = 1 << 20


def resident_bytes() -> int:
    """The memory of this process that is no file's."""
    with open("/proc/self/status", encoding="ascii") as file:  # noqa: PTH123  # looked at often
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10


class Peak:
    """The most memory that there was inside."""

    def __enter__(self) -> Peak:
        self.most = self.before = resident_bytes()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self.after = resident_bytes()

    def _watch(self) -> None:
        while not self._ended.wait(2e-4):
            self.most = max(self.most, resident_bytes())


def params() -> list[torch.Tensor]:
    """Return the parameters of every run."""
    return [torch.randn(SIZE).requires_grad_() for _ in range(LAYERS)]


def made(package: str, state_format: str, given: list[torch.Tensor]) -> Any:
    """Return an optimizer of either package over them."""
    if package == "torch":
        return torch.optim.Adam(given)
    return steprule.Adam(given, state_format=state_format)


def measured(call: Callable[[], Any]) -> dict[str, float]:
    """Return the seconds that a call took and the memory that it took beyond its result."""
    begin = time.perf_counter()
    with Peak() as peak:
        call()
    return {
        "seconds": time.perf_counter() - begin,
        "extra": (peak.most - max(peak.before, peak.after)) / MIB,
    }


def child(package: str, state_format: str, path: str, action: str) -> dict[str, float]:
    """Save or load in this process, and tell what it cost."""
    given = params()
    optimizer = made(package, state_format, given)
    if action == "load":
        if package == "torch":
            return measured(lambda: optimizer.load_state_dict(torch.load(path, weights_only=True)))
        return measured(lambda: optimizer.load(path))
    for param in given:
        param.grad = torch.randn_like(param)
    optimizer.step()
    for param in given:
        param.grad = None
    if package == "torch":
        return measured(lambda: torch.save(optimizer.state_dict(), path))
    return measured(lambda: optimizer.save(path))


def table_of_files() -> None:
    """Print what files cost."""
    columns = "save, s | load, s | save, MiB more | load, MiB more | file, MiB"
    print(f"| Adam, 16 tensors of 4 MiB | {columns} |")
    print("|---|---|---|---|---|---|")
    for package, state_format in (("torch", "param"), *(("steprule", f) for f in FORMATS)):
        with tempfile.TemporaryDirectory() as folder:
            path = str(Path(folder) / "file")
            rows = {"save": [], "load": []}  # type: ignore[var-annotated]
            for _ in range(3):
                for action, found in rows.items():
                    command = [sys.executable, __file__, package, state_format, path, action]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    found.append(json.loads(done.stdout))
            size = Path(path).stat().st_size / MIB
        cells = [
            f"{statistics.median(x[what] for x in rows[action]):{shape}}"
            for what, shape in (("seconds", ".2f"), ("extra", ".0f"))
            for action in rows
        ]
        print(f"| {package}, {state_format} | {' | '.join(cells)} | {size:.0f} |")


def milliseconds(call: Callable[[], Any], repeats: int = 40) -> float:
    """Return the median time of a call."""
    found = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        found.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(found)


def table_of_averages() -> None:
    """Print what averages cost beside a step."""
    columns = "step alone | with ema_decay | torch's fused step and AveragedModel"
    print(f"\n| AdamW and an average of the weights | {columns} |")
    print("|---|---|---|---|")
    for count, size in ((100, 1000), (16, 1 << 18)):
        model = torch.nn.ParameterList(
            [torch.nn.Parameter(torch.randn(size)) for _ in range(count)]
        )
        for param in model.parameters():
            param.grad = torch.randn_like(param)
        alone = steprule.AdamW(model.parameters())
        averaging = steprule.AdamW(model.parameters(), ema_decay=0.999)
        averaged = steprule.swa_utils.AveragedModel(
            model, multi_avg_fn=steprule.swa_utils.get_ema_multi_avg_fn(0.999)
        )
        theirs = torch.optim.AdamW(model.parameters(), fused=True)

        def both(theirs: Any = theirs, averaged: Any = averaged, model: Any = model) -> None:
            theirs.step()
            averaged.update_parameters(model)

        for call in (alone.step, averaging.step, both):
            milliseconds(call, 5)
        cells = [milliseconds(call) for call in (alone.step, averaging.step, both)]
        ratio = cells[2] / cells[1]
        print(
            f"| {count} tensors of {size} | {cells[0]:.3f} ms | {cells[1]:.3f} ms | "
            f"{cells[2]:.3f} ms, {ratio:.1f} times |"
        )


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(child(*sys.argv[1:])))
    else:
        table_of_files()
        table_of_averages()
