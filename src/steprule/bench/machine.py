"""What figures depend on besides the versions: the machine, and what else it does."""

from __future__ import annotations

import os
from collections.abc import Mapping

from steprule.doctor.machine import cores, memory, processor


def machine() -> Mapping[str, str]:
    """Return processor, cores that this process may use, memory, and load before the run."""
    found = {"processor": processor(), "cores": str(cores())}
    try:
        found["memory"] = memory()
        found["load before"] = f"{os.getloadavg()[0]:.1f}"
    except (AttributeError, OSError, ValueError):  # not every system tells
        pass
    return found
