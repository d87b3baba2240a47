"""The machine that steps run on."""

from __future__ import annotations

import contextlib
import math
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

from steprule.doctor import machine
from steprule.doctor.finding import Finding, note

SECTION = "machine"
#: Which devices CUDA shows to this process; empty or -1 for none.
_SHOWN = "CUDA_VISIBLE_DEVICES"
#: There where Linux has loaded NVIDIA's driver.
DRIVER = Path("/proc/driver/nvidia/version")


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
    return _found()[0]


def _found() -> tuple[list[torch.device], str]:
    """Return the devices, and what torch said while it looked for them."""
    found = [torch.device("cpu")]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if torch.cuda.is_available():
            found.append(torch.device("cuda"))
        if torch.xpu.is_available():
            found.append(torch.device("xpu"))
        if torch.backends.mps.is_available():
            found.append(torch.device("mps"))
    return found, " ".join(" ".join(str(one.message).split()) for one in said)


def _devices() -> Iterator[Finding]:
    (_, *others), said = _found()
    for device in others:
        yield Finding(SECTION, device.type, _described(device))
    if not others:
        value, why = "none beside the CPU", _why_none(said)
        yield note(SECTION, "devices", value, why) if why else Finding(SECTION, "devices", value)


def _why_none(said: str) -> str:
    """Return why a GPU that seems to be here is not seen; nothing where none seems to be."""
    built_for = _built_for()
    if said:
        return f"torch ({built_for}) says: {said}"
    shown = os.environ.get(_SHOWN, "-1")
    if torch.version.cuda and shown.strip() not in ("", "-1"):
        return f"{_SHOWN}={shown}, and torch ({built_for}) sees no such device: unset it"
    if DRIVER.exists() and not torch.version.cuda:
        return (
            f"there is a driver for NVIDIA's, and this torch is {built_for}: install the one for "
            "CUDA by the command that pytorch.org gives"
        )
    if DRIVER.exists() and _SHOWN not in os.environ:
        return f"there is a driver for NVIDIA's, and torch ({built_for}) sees no device of it"
    return ""


def _built_for() -> str:
    if torch.version.cuda:
        return f"built for CUDA {torch.version.cuda}"
    return f"built for HIP {torch.version.hip}" if torch.version.hip else "built for CPUs alone"


def _described(device: torch.device) -> str:
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability()
        runtime = f"HIP {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        count = torch.cuda.device_count()
        return f"{count} x {torch.cuda.get_device_name()}, capability {major}.{minor}, {runtime}"
    if device.type == "xpu":
        return f"{torch.xpu.device_count()} x {torch.xpu.get_device_name()}"
    return "there"
