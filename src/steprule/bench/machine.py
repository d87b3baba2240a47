"""What figures depend on besides the versions: the machine, and what else it does."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


def machine() -> Mapping[str, str]:
    """Return processor, cores that this process may use, memory, and load before the run."""
    found = {"processor": _processor(), "cores": str(_cores())}
    try:
        found["memory"] = (
            f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB"
        )
        found["load before"] = f"{os.getloadavg()[0]:.1f}"
    except (AttributeError, OSError, ValueError):  # not every system tells
        pass
    return found


def _processor() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
