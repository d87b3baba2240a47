"""A first launch on a device, whose result is known: whether arguments arrive as they are given.

A compiler or driver that passes arguments otherwise than was expected would have kernels write
anywhere. So, once for each device and process, a kernel adds up what it finds in each argument.
"""

from __future__ import annotations

import torch

from steprule.engines.gpu.arguments import NUMBERS, TABLES, head
from steprule.engines.gpu.device_tables import DeviceTables
from steprule.engines.gpu.programs.launching import program_for
from steprule.engines.gpu.programs.streams import (
    is_capturing,
    on_device,
    waiting_is_allowed,
)
from steprule.engines.target import target

# Two numbers, and what each table holds: no two sums of some of them are alike.
_GIVEN = (3, 5)
_FIRST = 7


def _probe_source() -> str:
    terms = [f"{name}.to(tl.float64)" for name in NUMBERS]
    terms += [f"{2**i} * tl.load({name}).to(tl.float64)" for i, name in enumerate(TABLES, start=1)]
    lines = [f"total = {terms[0]}", *(f"total = total + {term}" for term in terms[1:])]
    lines.append("tl.store(square_sums, total)")
    return "\n".join([head("probe"), *(f"    {line}" for line in lines)])


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
    program = program_for(_probe_source(), "probe", device, title)
    if target() is not None:  # nothing is launched
        return None
    with torch.no_grad(), on_device(device), waiting_is_allowed(device):
        tables = DeviceTables(device, {}, dict.fromkeys(TABLES, 1))
        expected = float(sum(_GIVEN))
        for i, name in enumerate(TABLES, start=1):
            tables[name].fill_(_FIRST + i)
            expected += 2**i * (_FIRST + i)
        try:
            program.launch(1, *_GIVEN, tables)
            found = float(tables["square_sums"][0])
            said = None if found == expected else f"gave {found:g} instead of {expected:g}"
        except RuntimeError as error:
            said = f"failed ({error})"
    _known[device] = None if said is None else f"{title} {said}"
    return _known[device]
