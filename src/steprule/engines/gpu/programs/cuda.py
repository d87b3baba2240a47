"""Kernels launched by NVIDIA's driver, called directly.

A launch by Triton's own launcher costs 10 to 16 us of Python; the driver's function takes 3. What
it is given is the same at each step, so that the array of arguments is made once for some tables.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch

from steprule.engines.gpu.arguments import NUMBERS
from steprule.engines.gpu.device_tables import DeviceTables
from steprule.engines.gpu.programs.compiled import Compiled
from steprule.engines.gpu.programs.kept import kept_kernel
from steprule.engines.gpu.programs.streams import current_stream

_MAX_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_USUAL_SHARED = 48 * 1024
_NO_CONTEXT = 201  # CUDA_ERROR_INVALID_CONTEXT


class CudaError(RuntimeError):
    """The driver refused something."""


@functools.cache
def driver() -> Any:
    """Return the driver's library."""
    library = ctypes.CDLL("libcuda.so.1")
    pointer, number = ctypes.c_void_p, ctypes.c_uint
    library.cuLaunchKernel.argtypes = [pointer, *[number] * 7, pointer, pointer, pointer]
    library.cuModuleLoadData.argtypes = [pointer, ctypes.c_char_p]
    library.cuModuleGetFunction.argtypes = [pointer, pointer, ctypes.c_char_p]
    library.cuFuncSetAttribute.argtypes = [pointer, ctypes.c_int, ctypes.c_int]
    library.cuGetErrorString.argtypes = [ctypes.c_int, pointer]
    return library


class Arguments:
    """The arguments of kernels over some tables, as the driver wants them.

    Args:
        parameters: how many a kernel takes: what is beyond ours is 0.
        tables: those of a runner.
    """

    def __init__(self, parameters: int, tables: DeviceTables) -> None:
        addresses = [table.data_ptr() for table in tables.arguments()]
        values = [0] * len(NUMBERS) + addresses
        values += [0] * (parameters - len(values))
        self.values = (ctypes.c_int64 * parameters)(*values)
        start = ctypes.addressof(self.values)
        self.places = (ctypes.c_void_p * parameters)(*(start + 8 * i for i in range(parameters)))


class CudaProgram:
    """A kernel that is loaded on one device.

    Args:
        kernel: its machine code.
        device: the device, which is the current one.
    """

    def __init__(self, kernel: Compiled, device: torch.device) -> None:
        self._kernel, self._device = kernel, device
        cuda = driver()
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        _check(cuda.cuModuleLoadData(ctypes.byref(module), kernel.cubin))
        symbol = kernel.symbol.encode()
        _check(cuda.cuModuleGetFunction(ctypes.byref(function), module, symbol))
        if kernel.shared > _USUAL_SHARED:
            _check(cuda.cuFuncSetAttribute(function, _MAX_DYNAMIC_SHARED, kernel.shared))
        self._function, self._launch = function, cuda.cuLaunchKernel

    def launch(self, programs: int, tensors: int, first_chunk: int, tables: DeviceTables) -> None:
        arguments = tables.packed(self._kernel.parameters, Arguments)
        arguments.values[0], arguments.values[1] = tensors, first_chunk
        error = self._launch_on(programs, arguments)
        if error == _NO_CONTEXT:  # a thread that torch has not used: its first call makes one
            torch.empty(1, device=self._device).zero_()
            error = self._launch_on(programs, arguments)
        _check(error)

    def _launch_on(self, programs: int, arguments: Arguments) -> int:
        kernel = self._kernel
        error: int = self._launch(
            self._function,
            *(programs, 1, 1, kernel.threads, 1, 1, kernel.shared),
            current_stream(self._device),
            arguments.places,
            None,
        )
        return error


def _check(error: int) -> None:
    if not error:
        return
    text = ctypes.c_char_p()
    driver().cuGetErrorString(error, ctypes.byref(text))
    said = (text.value or b"unknown error").decode()
    raise CudaError(f"CUDA's driver says: {said} (error {error})")


@functools.cache
def cuda_program(source: str, name: str, device: torch.device, title: str) -> CudaProgram:
    """Return a kernel that is loaded on a device, which is the current one."""
    major, minor = torch.cuda.get_device_capability(device)
    return CudaProgram(kept_kernel(source, name, 10 * major + minor, title), device)
