"""`steprule memory`: bytes of weights, state and gradients, before any are allocated."""

from __future__ import annotations

import importlib
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from steprule.cli.errors import CommandError
from steprule.cli.warm import parse_options
from steprule.formats.choices import HALF, state_format_names
from steprule.optimizer import Optimizer
from steprule.optimizer.options import suggestion
from steprule.rules import OPTIMIZERS

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_SHAPE = re.compile(r"(?:(\d+)\*)?(\d+(?:x\d+)*)")


@dataclass(frozen=True)
class MemoryRow:
    """What one choice of formats takes, in bytes.

    Attributes:
        state_format: the option.
        param_rounding: the option.
        elements: of all parameters.
        weights: the parameters themselves.
        state: the optimizer's state.
        gradients: of all parameters.
        gradient: the largest one, which is all there is of them with ``step_in_backward``.
    """

    state_format: str
    param_rounding: str
    elements: int
    weights: int
    state: int
    gradients: int
    gradient: int

    @property
    def total(self) -> int:
        """All while a step is taken."""
        return self.weights + self.state + self.gradients

    @property
    def in_backward(self) -> int:
        """All while a step is taken in the backward pass."""
        return self.weights + self.state + self.gradient


def print_memory(
    sources: Sequence[str], optimizer: str, dtype: str | None, options: str | None
) -> None:
    """Print a table of the choices.

    Raises:
        CommandError: a source that can't be read, or something unknown.
    """
    cls = OPTIMIZERS.get(optimizer.lower())
    if cls is None:
        names = ", ".join(OPTIMIZERS)
        raise CommandError(
            f"unknown optimizer {optimizer!r}{suggestion(optimizer, OPTIMIZERS)}; "
            f"steprule's are {names}"
        )
    if cls.rule is None or cls.rule.sparse == "only":
        raise CommandError(f"{cls.__name__} has no state that could be stored otherwise")
    params = [param for source in sources for param in params_of(source)]
    if dtype is not None:
        params = [param.to(_dtype_named(dtype)) for param in params]
    if not sum(param.numel() for param in params):
        raise CommandError(f"{' '.join(sources)}: no parameters there")
    given = parse_options(options) if options else {}
    for name in ("state_format", "param_rounding"):
        if name in given:
            raise CommandError(f"--options {options}: {name} is what the rows of the table are")
    try:
        rows = list(memory_rows(params, cls, given))
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
    elements = rows[0].elements
    console = Console(soft_wrap=True, highlight=False, markup=False)
    console.print(
        f"{cls.__name__}, {len(params):,} tensor{'s' * (len(params) != 1)} of {elements:,} "
        f"parameters in all, {_size(rows[0].weights)} of weights"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("format", "rounding"):
        table.add_column(f"\n{name}", no_wrap=True)
    for name in ("state", "step", "backward"):
        table.add_column(f"{name}\neach", justify="right", no_wrap=True)
        table.add_column("\nin all", justify="right", no_wrap=True)
    for row in rows:
        cells = [
            text
            for count in (row.state, row.total, row.in_backward)
            for text in (f"{count / elements:.2f}", _size(count))
        ]
        table.add_row(row.state_format, row.param_rounding, *cells)
    console.print(table)
    console.print(
        "Bytes of each parameter, and in all. 'step': weights, state and gradients; 'backward': "
        "with steprule.step_in_backward, of the gradients only the largest."
    )


def memory_rows(
    params: Sequence[Tensor], cls: type[Optimizer], options: dict[str, Any]
) -> Iterator[MemoryRow]:
    """Yield what each choice of formats takes, for parameters on the meta device.

    Args:
        params: tensors that may be without memory.
        cls: the optimizer.
        options: of it, but for the formats.
    """
    has_half = any(param.dtype in HALF for param in params)
    has_float16 = any(param.dtype is torch.float16 for param in params)
    roundings = ["nearest"]
    if has_half:
        roundings += ["kahan"] if has_float16 else ["kahan", "split24", "split"]
    make: Any = cls
    sizes = [param.numel() * param.element_size() for param in params]
    for rounding in roundings:
        for state_format in state_format_names():
            made = [param.detach().to("meta").requires_grad_() for param in params]
            optimizer = make(made, **options, state_format=state_format, param_rounding=rounding)
            optimizer.init_state()
            yield MemoryRow(
                state_format=state_format,
                param_rounding=rounding,
                elements=sum(param.numel() for param in params),
                weights=sum(sizes),
                state=int(optimizer.state_bytes()),
                gradients=sum(sizes),
                gradient=max(sizes),
            )


def params_of(source: str) -> list[Tensor]:
    """Return the parameters that a source names, on the meta device.

    Args:
        source: shapes (``4096x4096,32*4096``), a safetensors file, or ``module:function``, which is
            called without arguments, on the meta device, and returns a module.

    Raises:
        CommandError: it can't be read.
    """
    if source.endswith(".safetensors") or Path(source).is_file():
        return _params_of_file(source)
    if ":" in source:
        return _params_of_model(source)
    return [torch.empty(shape, device="meta") for shape in _shapes(source)]


def _shapes(source: str) -> Iterator[tuple[int, ...]]:
    for part in source.split(","):
        found = _SHAPE.fullmatch(part.strip())
        if found is None:
            raise CommandError(
                f"{part.strip()!r} is no shape (4096x4096, or 32*4096x11008 for 32 of them), no "
                "safetensors file and no module:function"
            )
        for _ in range(int(found[1] or 1)):
            yield tuple(map(int, found[2].split("x")))


def _params_of_file(source: str) -> list[Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(source, framework="pt") as file:
            kinds = [
                (file.get_slice(key).get_dtype(), file.get_slice(key).get_shape())
                for key in file.keys()  # noqa: SIM118  # it is no dict
            ]
    except (OSError, SafetensorError) as error:
        raise CommandError(f"{source}: {error}") from error
    # Whole numbers among the tensors are buffers; what is in 8 bits already is nothing to train.
    return [
        torch.empty(shape, dtype=_DTYPES[dtype], device="meta")
        for dtype, shape in kinds
        if dtype in _DTYPES
    ]


def _params_of_model(source: str) -> list[Tensor]:
    module_name, _, name = source.partition(":")
    sys.path.insert(0, str(Path.cwd()))  # as `python -m` would
    try:
        make = getattr(importlib.import_module(module_name), name)
        with torch.device("meta"):
            model = make()
    except Exception as error:
        raise CommandError(f"{source}: {type(error).__name__}: {error}") from error
    finally:
        sys.path.pop(0)
    if not isinstance(model, nn.Module):
        raise CommandError(f"{source} returned {type(model).__name__}, not a torch.nn.Module")
    return [param for param in model.parameters() if param.requires_grad]


def _dtype_named(name: str) -> torch.dtype:
    known = {str(dtype).removeprefix("torch."): dtype for dtype in _DTYPES.values()}
    if name not in known:
        raise CommandError(f"unknown dtype {name!r}; valid: {', '.join(known)}")
    return known[name]


def _size(count: float) -> str:
    """Return bytes in the largest unit that leaves one or more, to three digits."""
    power = min(int(math.log10(max(count, 1)) / 3), 4)
    number = count / 1000**power
    digits = max(0, 2 - int(math.log10(max(number, 1)))) if power else 0
    return f"{number:.{digits}f} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"
