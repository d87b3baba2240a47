"""The peak of a process's memory while a large network trains, by how it steps and what it stores.

    python benchmarks/backward_memory.py [--layers 40]

So many layers of 1024x1024, a batch of 8: nearly all memory is weights, gradients and state. Each
choice runs in a process of its own; what is shown is the peak of resident memory in later
iterations less what was resident before the network was made. Linux only. The processes run with
MALLOC_MMAP_THRESHOLD_=131072, so that what is freed goes back to the system at once: by default
glibc keeps large pieces for later, and lets small ones split them, so that what a step in the
backward pass frees is not seen, nor always found again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import torch
from torch import nn

import steprule

WIDTH = 1024
CHOICES = {
    "float32, torch.optim.AdamW": ("float32", "torch", {}),
    "float32": ("float32", "usual", {}),
    "float32, step_in_backward": ("float32", "backward", {}),
    "float32, int8": ("float32", "usual", {"state_format": "int8"}),
    "bfloat16, split, int8": (
        "bfloat16",
        "usual",
        {"state_format": "int8", "param_rounding": "split"},
    ),
    "bfloat16, split, int8, step_in_backward": (
        "bfloat16",
        "backward",
        {"state_format": "int8", "param_rounding": "split"},
    ),
    "bfloat16, split24, int4, step_in_backward": (
        "bfloat16",
        "backward",
        {"state_format": "int4", "param_rounding": "split24"},
    ),
}


def resident(name: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def measure(layers: int, choice: str) -> tuple[int, int]:
    """Return the peak of a run in this process, and the number of parameters."""
    kind, way, options = CHOICES[choice]
    dtype = getattr(torch, kind)
    warm = nn.Linear(8, 8).to(dtype)  # what libraries allocate once
    warm(torch.ones(8, 8, dtype=dtype)).sum().backward()
    before = resident("VmRSS")
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(layers)))
    if way == "torch":
        optimizer: torch.optim.Optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    elif way == "usual":
        optimizer = steprule.AdamW(model.parameters(), **options)
    else:
        optimizer = steprule.step_in_backward(model, lambda p: steprule.AdamW(p, **options))
    x = torch.randn(8, WIDTH, dtype=dtype)
    for step in range(5):
        if step == 3:
            Path("/proc/self/clear_refs").write_text("5")
        model(x).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return resident("VmHWM") - before, sum(p.numel() for p in model.parameters())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.only:
        print(json.dumps(measure(asked.layers, asked.only)))
        return
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
    print("| | peak, MB | bytes a parameter |\n|---|---|---|")
    for choice in CHOICES:
        command = [sys.executable, __file__, "--layers", str(asked.layers), "--only", choice]
        made = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        peak, count = json.loads(made.stdout.splitlines()[-1])
        print(f"| {choice} | {peak / 1e6:.0f} | {peak / count:.1f} |", flush=True)


if __name__ == "__main__":
    main()
