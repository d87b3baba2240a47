"""The machine that steps run on."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch

from steprule.doctor import machine
from steprule.doctor.finding import Finding, note

SECTION = "machine"


def hardware() -> Iterator[Finding]:
    """Yield processor, cores, memory and devices."""
    yield Finding(SECTION, "processor", machine.processor())
    yield Finding(SECTION, "instructions", torch.backends.cpu.get_cpu_capability())
    yield _cores()
    with contextlib.suppress(AttributeError, OSError, ValueError):  # not every system tells
        yield Finding(SECTION, "memory", machine.memory())
    yield from _devices()


def _cores() -> Finding:
    cores, quota = machine.cores(), machine.quota()
    if quota >= cores:
        return Finding(SECTION, "cores", str(cores))
    value = f"{cores}, but this container may use the time of {quota:g}"
    if torch.get_num_threads() <= math.ceil(quota):
        return Finding(SECTION, "cores", value)
    return note(
        SECTION,
        "cores",
        value,
        f"torch uses {torch.get_num_threads()} threads, which wait for each other then: "
        f"set OMP_NUM_THREADS={max(1, math.floor(quota))}",
    )


def devices() -> list[torch.device]:
    """Return the devices that parameters can be on, the CPU first, one of each type."""
    found = [torch.device("cpu")]
    if torch.cuda.is_available():
        found.append(torch.device("cuda"))
    if torch.xpu.is_available():
        found.append(torch.device("xpu"))
    if torch.backends.mps.is_available():
        found.append(torch.device("mps"))
    return found


def _devices() -> Iterator[Finding]:
    others = devices()[1:]
    if not others:
        yield Finding(SECTION, "devices", "none beside the CPU")
    for device in others:
        yield Finding(SECTION, device.type, _described(device))


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        runtime = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}, capability {major}.{minor}, {runtime}"
    if device.type == "xpu":
        return f"{torch.xpu.device_count()} x {torch.xpu.get_device_name()}"
    return "there"
