"""What steprule adds to the start of a process: the import, and the first step.

    python benchmarks/start_up.py [--rounds 5]

Every reading is a process of its own. The first step is taken with kernels on disk (warm), and
once with an empty cache (cold: kernels are compiled). Printed in seconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

SCRIPT = """
import time, torch
start = time.perf_counter()
import steprule
imported = time.perf_counter() - start
param = torch.ones(1000, requires_grad=True)
param.grad = torch.ones(1000)
optimizer = steprule.AdamW([param])
start = time.perf_counter()
optimizer.step()
print(imported, time.perf_counter() - start)
"""


def reading(folder: str) -> tuple[float, float]:
    """Seconds of the import and of the first step, in a new process."""
    environment = {**os.environ, "STEPRULE_CACHE_DIR": folder}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    imported, first = map(float, done.stdout.split())
    return imported, first


def main() -> None:
    """Print the three figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as folder:
        cold = reading(folder)[1]
        readings = [reading(folder) for _ in range(rounds)]
    print(f"import steprule, beside import torch: {statistics.median(r[0] for r in readings):.3f}")
    print(f"first step, kernels on disk:          {statistics.median(r[1] for r in readings):.3f}")
    print(f"first step, kernels to compile:       {cold:.3f}")


if __name__ == "__main__":
    main()
