"""A first launch on a device, whose result is known: whether arguments arrive as they are given.

A compiler or driver that passes arguments otherwise than was expected would have kernels write
anywhere. So, once for each device and process, a kernel adds up what it finds in each argument.
"""

from __future__ import annotations

import torch

from steprule.engines.gpu.arguments import ARGUMENTS, NUMBERS, TABLES, head
from steprule.engines.gpu.device_tables import DeviceTables
from steprule.engines.gpu.programs.launching import Program, program_for
from steprule.engines.gpu.programs.streams import (
    is_capturing,
    on_device,
    waiting_is_allowed,
)
from steprule.engines.kernel_cache.cache import CompilationError
from steprule.engines.kernels.layout import indented
from steprule.engines.target import target

# What each argument is, or a table of it holds; it counts twice as much as the one before it.
_GIVEN = {name: 7 + i for i, name in enumerate(ARGUMENTS)}


def _probe_source() -> str:
    lines = ["total = tl.full((), 0.0, tl.float64)"]
    for i, name in enumerate(ARGUMENTS):
        found = f"tl.load({name})" if name in TABLES else name
        lines.append(f"total = total + {2**i} * {found}.to(tl.float64)")
    lines.append("tl.store(square_sums, total)")
    return "\n".join([head("probe"), *indented(lines, 4)])


# What was found out, by device: None where all is well.
_known: dict[torch.device, str | None] = {}


def why_not_usable(device: torch.device) -> str | None:
    """Say why kernels can't be launched on a device; None if they can.

    Waits for the device, once.

    Raises:
        CompilationError: the compiler made nothing of the kernel.
    """
    if target() is None and (device in _known or is_capturing(device)):
        return _known.get(device)
    title = f"a first launch on {device}"
    with on_device(device), waiting_is_allowed(device), torch.no_grad():
        try:
            program = program_for(_probe_source(), "probe", device, title)
            if target() is not None:  # nothing is launched
                return None
            said = _what_went_wrong(program, device)
        except CompilationError:
            raise
        except (OSError, RuntimeError) as error:  # no driver, or one that refuses
            said = f"failed ({error})"
    _known[device] = None if said is None else f"{title} {said}"
    return _known[device]


def _what_went_wrong(program: Program, device: torch.device) -> str | None:
    tables = DeviceTables(device, {}, dict.fromkeys(TABLES, 1))
    for name in TABLES:
        tables[name].fill_(_GIVEN[name])
    tensors, first_chunk = (_GIVEN[name] for name in NUMBERS)
    program.launch(1, tensors, first_chunk, tables)
    found = float(tables["square_sums"][0])
    expected = float(sum(2**i * given for i, given in enumerate(_GIVEN.values())))
    return None if found == expected else f"gave {found:g} instead of {expected:g}"
