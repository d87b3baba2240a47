"""What is asked of a device's streams; of a CPU, which has none, nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol

import torch

# A microsecond; the way that torch documents makes an object first.
_raw_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)


class Marker(Protocol):
    """A point in a stream's work."""

    def wait(self) -> None:
        """Wait until all work before it is done."""


class _EventMarker:
    def __init__(self, device: torch.device) -> None:
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record(torch.cuda.current_stream(device))

    def wait(self) -> None:
        self._event.synchronize()


def mark(device: torch.device) -> Marker:
    """Return a mark behind all work of the current stream."""
    return _EventMarker(device)


def current_stream(device: torch.device) -> int:
    """Return the handle of a device's current stream; 0 on the CPU."""
    if device.type != "cuda":
        return 0
    if _raw_stream is not None:
        return int(_raw_stream(device.index))
    return int(torch.cuda.current_stream(device).cuda_stream)


def current_stream_object(device: torch.device) -> Any:
    """Return a device's current stream as torch has it; None on the CPU."""
    return torch.cuda.current_stream(device) if device.type == "cuda" else None


def is_capturing(device: torch.device) -> bool:
    """Tell whether the current stream's work is being captured as a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def on_device(device: torch.device) -> Any:
    """Return what makes a device the current one, where it is not."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _NOWHERE
    return torch.cuda.device(device)


@contextlib.contextmanager
def waiting_is_allowed(device: torch.device) -> Iterator[None]:
    """Have torch not complain that the host waits, where somebody has asked it to."""
    if device.type != "cuda":
        yield
        return
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode(0)
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(mode)


class _Nowhere:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


_NOWHERE = _Nowhere()
