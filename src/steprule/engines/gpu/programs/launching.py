"""What runs a kernel on some tables: the interpreter, NVIDIA's driver, or Triton's own launcher."""

from __future__ import annotations

import functools
import importlib.util
from typing import Protocol

import torch
from torch.torch_version import TorchVersion

from steprule.engines.gpu.device_tables import DeviceTables
from steprule.engines.gpu.programs.version import triton_version
from steprule.engines.interpreting import is_interpreting
from steprule.engines.target import target

# The first that kernels were compiled and interpreted with.
OLDEST = "3.6"


class Program(Protocol):
    """A kernel, ready to be launched on one device."""

    def launch(self, programs: int, tensors: int, first_chunk: int, tables: DeviceTables) -> None:
        """Run so many programs, in the order of the device's current stream."""


class _Interpreted:
    def __init__(self, source: str, name: str) -> None:
        from steprule.engines.gpu.programs.interpreted import interpreted_program

        self._run = interpreted_program(source, name)

    def launch(self, programs: int, tensors: int, first_chunk: int, tables: DeviceTables) -> None:
        self._run(programs, [tensors, first_chunk, *tables.arguments()])


class _OnlyCompiled:
    """Compiled for a card that is not there."""

    def __init__(self, source: str, name: str, capability: int, title: str) -> None:
        from steprule.engines.gpu.programs.kept import kept_kernel

        kept_kernel(source, name, capability, title)

    def launch(self, programs: int, tensors: int, first_chunk: int, tables: DeviceTables) -> None:
        """Do nothing."""


class _JustInTime:
    """Compiled and launched by Triton itself: for devices whose driver is not NVIDIA's."""

    def __init__(self, source: str, name: str) -> None:
        from steprule.engines.gpu.programs.compiled import WARPS, jit_kernel

        self._kernel, self._warps = jit_kernel(source, name), WARPS

    def launch(self, programs: int, tensors: int, first_chunk: int, tables: DeviceTables) -> None:
        self._kernel[(programs,)](
            *(tensors, first_chunk, *tables.arguments()),
            num_warps=self._warps,
            enable_fp_fusion=False,
        )


@functools.cache
def why_unavailable() -> str | None:
    """Say why no kernels can be made here; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (torch's builds for GPUs bring it)"
    found = triton_version()
    if TorchVersion(found) < OLDEST:
        return f"triton {found} is older than {OLDEST}, for which kernels are written"
    return None


def program_for(source: str, name: str, device: torch.device, title: str) -> Program:
    """Return a kernel, ready to be launched on a device.

    Args:
        source: its text.
        name: its name in it.
        device: where its tables are.
        title: how people are told what is being compiled, if it takes long.
    """
    capability = target()
    if capability is not None:
        return _OnlyCompiled(source, name, capability, title)
    if device.type == "cpu":
        assert is_interpreting()
        return _interpreted(source, name)
    if device.type == "cuda" and torch.version.hip is None:
        from steprule.engines.gpu.programs.cuda import cuda_program

        return cuda_program(source, name, device, title)
    return _just_in_time(source, name)


_interpreted = functools.cache(_Interpreted)
_just_in_time = functools.cache(_JustInTime)
