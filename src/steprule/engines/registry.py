"""The engines, one line each, fastest first; loaded when a parameter is first offered to them."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

from steprule.engines import tensor_vocabulary as tensor_vocabulary  # a rule takes tensors at once
from steprule.engines.engine import Engine, UnavailableError

AUTO = "auto"


@dataclass(frozen=True)
class Entry:
    """An engine's name and where it is.

    Attributes:
        name: what users ask for, and what ``explain()`` shows.
        where: ``"module:Class"``; called without arguments.
        devices: on which ``"auto"`` offers parameters to it; None for all.
        has_public_name: whether users may ask for it by name.
        needs: a module without which it takes nothing.
        stands_for: names by which it is asked for as well, on its devices.
        is_reference: whether it updates one leaf after the other, as the others must agree with.
    """

    name: str
    where: str
    devices: tuple[str, ...] | None = None
    has_public_name: bool = True
    stands_for: tuple[str, ...] = ()
    needs: str | None = None
    is_reference: bool = False


_entries: list[Entry] = [
    Entry("fused", "steprule.engines.cpu.engine:CpuEngine", devices=("cpu",)),
    Entry(
        "triton",
        "steprule.engines.gpu.engine:TritonEngine",
        devices=("cuda", "xpu"),
        stands_for=("fused",),
        needs="triton",
    ),
    Entry("foreach", "steprule.engines.foreach.engine:ForeachEngine"),
    Entry("eager", "steprule.engines.eager.engine:EagerEngine", is_reference=True),
    Entry("rows", "steprule.engines.rows.engine:RowsEngine", has_public_name=False),
]


def register(entry: Entry, before: str = "eager") -> None:
    """Add an engine: it is offered what it is asked for, before the one named."""
    _entries.insert([e.name for e in _entries].index(before), entry)


def unregister(name: str) -> None:
    """Take an engine away again."""
    _entries[:] = [entry for entry in _entries if entry.name != name]
    load.cache_clear()


def entries() -> Sequence[Entry]:
    """Return all engines, in the order in which a parameter is offered to them."""
    return tuple(_entries)


def public_names() -> list[str]:
    """Return the names that users may ask for, sorted."""
    return sorted(entry.name for entry in _entries if entry.has_public_name)


def reference_name() -> str:
    """Return the name of the engine that updates one leaf after the other."""
    return next(entry.name for entry in _entries if entry.is_reference)


def candidates(wanted: str, device: str) -> tuple[str, ...]:
    """Return the engines that a parameter is offered to, in order.

    Args:
        wanted: the name of an engine, which is the first then; or ``"auto"``.
        device: the type of the parameter's device.
    """
    first = AUTO if wanted == AUTO else asked_for(wanted, device)
    names = [entry.name for entry in _entries]
    return tuple(
        entry.name
        for entry in _entries[0 if first == AUTO else names.index(first) :]
        if entry.name == first or entry.devices is None or device in entry.devices
    )


def asked_for(wanted: str, device: str) -> str:
    """Return the engine that a name means on a device."""
    for entry in _entries:
        if wanted in entry.stands_for and device in (entry.devices or ()):
            return entry.name
    return wanted


def kernel_devices() -> frozenset[str]:
    """Return the types of devices, other than the host's, for which there are kernels."""
    there = [e for e in _entries if e.needs is None or _is_there(e.needs)]
    return frozenset(x for entry in there for x in entry.devices or () if x != "cpu")


@functools.cache
def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


@functools.cache
def load(entry: Entry) -> Engine:
    """Import an engine's module and make the engine.

    Raises:
        UnavailableError: it can't be imported here.
    """
    module, _, name = entry.where.partition(":")
    try:
        engine: Engine = getattr(importlib.import_module(module), name)()
    except (ImportError, OSError) as error:  # llvmlite is there, and the library in it is not
        raise UnavailableError(f"engine {entry.name!r} can't be imported: {error}") from error
    return engine
