"""The machine: processor, cores, memory, devices."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")
# Where Linux says how much processor time a container may use.
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def processor() -> str:
    """Return the processor's name."""
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def quota() -> float:
    """Return how many cores' time this container may use; infinity if there is no bound."""
    try:
        used, _, period = CPU_QUOTA.read_text().strip().partition(" ")
        return int(used) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # elsewhere, or "max"
        return math.inf


def memory() -> str:
    """Return the memory's size.

    Raises:
        AttributeError, OSError, ValueError: this system does not tell.
    """
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB"
