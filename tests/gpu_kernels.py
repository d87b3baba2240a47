"""The kernels that optimizers launch on a device, without one: gathered, and compiled for cards."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

import steprule
from steprule.rules import OPTIMIZERS


class Kernel(NamedTuple):
    """A kernel's text."""

    name: str
    source: str


@contextmanager
def gathered() -> Iterator[list[Kernel]]:
    """The kernels of all runners that are made inside."""
    from steprule.engines.gpu import runner

    found: list[Kernel] = []
    plain = runner.program_for

    def program_for(source: str, name: str, *rest: Any) -> Any:
        found.append(Kernel(name, source))
        return plain(source, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "program_for", program_for)
        yield found


def kernels_of(name: str, dtype: torch.dtype = torch.float32, **options: Any) -> list[Kernel]:
    """The kernels of an optimizer over a matrix and a vector (Muon: two matrices).

    Of rules with square matrices, whose parameters are not for kernels, over two vectors.
    """
    cls: Any = OPTIMIZERS[name.lower()]
    shapes = [(40, 24), (8, 8)] if cls.only_2d else [(41, 101), (13,)]
    if any(slot.is_square for slot in cls.rule.slots.values()):
        shapes = [(41,), (13,)]
    params = [torch.ones(shape, dtype=dtype).requires_grad_() for shape in shapes]
    with gathered() as found:
        optimizer = cls(params, engine="triton", **options)
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert {row.engine for row in optimizer.explain().rows} == {"triton"}
    return list(dict.fromkeys(found))


class Machine(NamedTuple):
    """What a kernel is for a card."""

    ptx: str
    registers: int
    local: int


@functools.cache
def compiled_for(kernel: Kernel, capability: int) -> Machine:
    """A kernel compiled for a card's compute capability, by Triton."""
    import tempfile

    from steprule.engines.gpu.programs.compiled import triton_compiled

    made = triton_compiled(kernel.source, kernel.name, "cuda", capability, 32)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        used = subprocess.run(
            [_cuobjdump(), "--dump-resource-usage", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    registers, local = re.search(r"REG:(\d+) .*LOCAL:(\d+)", used).groups()  # type: ignore[union-attr]
    return Machine(made.asm["ptx"], int(registers), int(local))


def _cuobjdump() -> str:
    import triton

    return str(Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump")


def runner_of(optimizer: steprule.Optimizer) -> Any:
    """The only runner of an optimizer that has stepped."""
    plan: Any = optimizer._plan
    (part,) = plan._parts
    return part.runner
