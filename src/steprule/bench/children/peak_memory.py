"""A process that measures how much its resident memory rises during a step."""

from __future__ import annotations

import importlib
import json
import re
import sys
from pathlib import Path

import torch

# Writing 5 sets the peak (VmHWM) back to what is resident now; Linux only.
RESET = Path("/proc/self/clear_refs")
STATUS = Path("/proc/self/status")
WARM_UP = 2


def status(name: str) -> int:
    """Return a figure of /proc/self/status in bytes."""
    found = re.search(rf"^{name}:\s*(\d+) kB", STATUS.read_text(), re.MULTILINE)
    assert found is not None
    return int(found[1]) * 1024


def reset_peak() -> bool:
    """Set the peak back to the present; return whether this system can."""
    try:
        RESET.write_text("5")
    except OSError:
        return False
    return STATUS.exists()


def whole_peak() -> int:
    """Return the peak of the process's whole life in bytes."""
    import resource  # not on Windows

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Print the extra bytes of each step, and whether they are exact."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    params = [torch.ones(shape, requires_grad=True) for shape in request["shapes"]]
    for param in params:
        param.grad = torch.full_like(param, 1e-3)
    make = getattr(importlib.import_module(request["module"]), request["name"])
    optimizer = make(params, **request["options"])
    for _ in range(WARM_UP):
        optimizer.step()
    extra, exact = [], True
    for _ in range(request["steps"]):
        exact = reset_peak()
        before = status("VmRSS") if exact else whole_peak()
        optimizer.step()
        extra.append(max(0, (status("VmHWM") if exact else whole_peak()) - before))
    sys.stdout.write(json.dumps({"extra": extra, "exact": exact}))


if __name__ == "__main__":
    main()
