"""What is asked of a device's streams; of a CPU, which has none, nothing."""

from __future__ import annotations

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


def is_capturing(device: torch.device) -> bool:
    """Tell whether the current stream's work is being captured as a graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def on_device(device: torch.device) -> Any:
    """Return what makes a device the current one, where it is not."""
    if device.type != "cuda" or torch.cuda.current_device() == device.index:
        return _NOWHERE
    return torch.cuda.device(device)


class _Nowhere:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


_NOWHERE = _Nowhere()
