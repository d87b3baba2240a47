"""The state of a sharded problem: with each parameter its own part, spread as it is.

torch's form, flat vectors with the first parameter, says nothing of who has which part. Here each
parameter's state has its part of every vector, as a ``DTensor`` of the parameter's mesh and
placements (a plain tensor for a plain parameter), so that ``torch.distributed.checkpoint`` saves it
on some number of ranks and loads it on another. Shapes do not depend on how many pairs there are
yet: ``old_dirs`` and ``old_stps`` have all slots of the ring as their first dimension, ``pairs``
says how many are in use, from ``ring_start`` on. Complex numbers have a last dimension of two.
``sy`` and ``yy``, products of the pairs oldest first, are with the first parameter, and what is one
number is with every one.

Either form is read by either kind of problem (saved_state.py): a state of many ranks by one process
that has it whole, torch's by many ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from steprule.distributed.shards import is_dtensor, local_of
from steprule.quasi_newton.flatten import Layout
from steprule.quasi_newton.memory import Memory
from steprule.quasi_newton.shared_history import SharedHistory

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

# Vectors that may not be there yet, and the bits of ``present`` that say which are.
VECTORS = {"d": 1, "prev_flat_grad": 2, "last_point": 4}
ROWS = ("old_stps", "old_dirs")


def is_parted(entry: Mapping[str, Any] | None) -> bool:
    """Tell whether a parameter's state is in this form."""
    return bool(entry) and "pairs" in entry  # type: ignore[operator]


def write_parted(
    state: MutableMapping[Any, dict[str, Any]], memory: Memory, layout: Layout, *, anew: bool
) -> None:
    """Make the state what a memory has.

    Args:
        state: the optimizer's.
        memory: what is to be written; of a shared problem.
        layout: the problem's.
        anew: make tensors; else those that are there, of this very history, are written to.
    """
    history = memory.history
    assert isinstance(history, SharedHistory)
    vectors = {"d": memory.direction, "prev_flat_grad": memory.prev_grad}
    vectors["last_point"] = memory.last_point
    numbers = {
        "func_evals": memory.func_evals,
        "n_iter": memory.n_iter,
        "t": memory.step,
        "H_diag": history.gamma,
        "prev_loss": math.nan if memory.prev_loss is None else memory.prev_loss,
        "pairs": len(history),
        "ring_start": history.start,
        "present": sum(VECTORS[key] for key, value in vectors.items() if value is not None),
    }
    zeros = torch.zeros(layout.size, dtype=layout.dtype, device=layout.device)
    parts = {key: layout.split(zeros if value is None else value) for key, value in vectors.items()}
    rows = [layout.split(history.rows[which]) for which in (0, 1)] if anew else []
    for i, param in enumerate(layout.params):
        entry = state.setdefault(param, {})
        if anew:
            entry.clear()
            entry.update({key: _spread(part[i].clone(), param) for key, part in parts.items()})
            entry.update({key: _spread(rows[k][i], param, 1) for k, key in enumerate(ROWS)})
        else:
            for key, part in parts.items():
                local_of(entry[key]).copy_(part[i])
        entry.update(numbers)
    square = torch.zeros(history.capacity, history.capacity, dtype=torch.float64)
    first = state[layout.params[0]]
    first |= {"sy": square.clone(), "yy": square}
    count = len(history)
    first["sy"][:count, :count] = history.curvature()
    first["yy"][:count, :count] = history.gram()


def are_placed(entries: Sequence[Mapping[str, Any] | None], layout: Layout) -> bool:
    """Tell whether each parameter's state is spread as the parameter is now."""
    return all(
        entry is not None and _is_placed(entry.get("d"), param, 0)
        for entry, param in zip(entries, layout.params, strict=True)
    )


def whole_of(
    entries: Sequence[Mapping[str, Any] | None], layout: Layout
) -> Mapping[str, Any] | None:
    """Return a state in this form as one in torch's, of this rank's flat vectors.

    Returns:
        It; without vectors where they are not of these parameters. None for no state.
    """
    first = next((entry for entry in entries if entry and "sy" in entry), None)
    if first is None:
        return None
    found: dict[str, Any] = {key: first[key] for key in ("func_evals", "n_iter", "t", "H_diag")}
    if not all(_fits(entry, param) for entry, param in zip(entries, layout.params, strict=True)):
        return found
    known = [entry for entry in entries if entry is not None]
    for key, bit in VECTORS.items():
        if first["present"] & bit:
            found[key] = _flat([entry[key] for entry in known], layout)
    count, start, slots = first["pairs"], first["ring_start"], len(first["old_stps"])
    order = [(start + k) % slots for k in range(count)]
    for key in ROWS:
        local = [
            _local(entry[key], param, 1) for entry, param in zip(known, layout.params, strict=True)
        ]
        found[key] = _Made(order, partial(_row, local, layout))
    curvature = first["sy"][:count, :count]
    return found | {
        "prev_loss": None if math.isnan(first["prev_loss"]) else first["prev_loss"],
        "ring_start": start,
        "sy": curvature,
        "yy": first["yy"][:count, :count],
        "ro": (1.0 / curvature.diagonal()).tolist(),
    }


def part_of(state: Mapping[str, Any], layout: Layout) -> Mapping[str, Any]:
    """Return a state in torch's form with this rank's part of its vectors."""
    sizes = [param.numel() << param.is_complex() for param in layout.params]

    def part(value: Tensor) -> Tensor:
        pieces = torch.split(value.detach(), sizes)
        shaped = [
            piece.view(_shape(param)) for piece, param in zip(pieces, layout.params, strict=True)
        ]
        return _flat(shaped, layout)

    found = dict(state)
    for key, value in state.items():
        if key in VECTORS and isinstance(value, Tensor):
            if value.numel() != sum(sizes):
                return {key: state[key] for key in ("func_evals", "n_iter") if key in state}
            found[key] = part(value)
        elif key in ROWS and value:
            found[key] = _Made(list(value), part)
    return found


class _Made(Sequence[Tensor]):
    """Vectors that are made when they are asked for: all of them at once are a second history."""

    def __init__(self, sources: Sequence[Any], make: Callable[[Any], Tensor]) -> None:
        self._sources, self._make = sources, make

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | Sequence[Tensor]:
        if isinstance(index, slice):
            return _Made(self._sources[index], self._make)
        return self._make(self._sources[index])


def _shape(param: Tensor) -> tuple[int, ...]:
    return (*param.shape, 2) if param.is_complex() else tuple(param.shape)


def _flat(values: Sequence[Tensor], layout: Layout) -> Tensor:
    """Return this rank's flat vector of whole or spread tensors, one for each parameter."""
    pairs = zip(values, layout.params, strict=True)
    return _joined([_local(value, param, 0) for value, param in pairs], layout)


def _row(parts: Sequence[Tensor], layout: Layout, slot: int) -> Tensor:
    return _joined([part[slot] for part in parts], layout)


def _joined(pieces: Sequence[Tensor], layout: Layout) -> Tensor:
    return layout.joined([piece.reshape(-1) for piece in pieces])


def _local(value: Tensor, param: Tensor, shift: int) -> Tensor:
    """Return this rank's part of state of a parameter, that has ``shift`` dimensions before it."""
    if not is_dtensor(param):
        return value.full_tensor() if is_dtensor(value) else value
    if is_dtensor(value):
        if not _is_placed(value, param, shift):
            value = value.redistribute(param.device_mesh, _placements(param, shift))
        return local_of(value)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, starts = compute_local_shape_and_global_offset(
        param.shape, param.device_mesh, param.placements
    )
    for dim, (size, start) in enumerate(zip(sizes, starts, strict=True)):
        value = value.narrow(dim + shift, min(start, value.shape[dim + shift]), size)
    return value


def _placements(param: DTensor, shift: int) -> tuple[Any, ...]:
    return tuple(_shifted(placement, shift) for placement in param.placements)


def _shifted(placement: Any, shift: int) -> Any:
    dim = getattr(placement, "dim", None)
    if dim is None or not shift:
        return placement
    factor = getattr(placement, "split_factor", None)
    more = {} if factor is None else {"split_factor": factor}
    return type(placement)(dim + shift, **more)


def _is_placed(value: Any, param: Tensor, shift: int) -> bool:
    if not is_dtensor(param):
        return isinstance(value, Tensor) and not is_dtensor(value)
    return (
        is_dtensor(value)
        and value.device_mesh == param.device_mesh
        and value.placements == _placements(param, shift)
    )


def _fits(entry: Mapping[str, Any] | None, param: Tensor) -> bool:
    if not is_parted(entry):
        return False
    assert entry is not None
    shape = _shape(param)
    return all(tuple(entry[key].shape) == shape for key in VECTORS) and all(
        tuple(entry[key].shape[1:]) == shape for key in ROWS
    )


def _spread(local: Tensor, param: Tensor, shift: int = 0) -> Tensor:
    """Return a local part of a parameter's state as state of the whole parameter."""
    if not is_dtensor(param):
        return local
    from torch.distributed.tensor import DTensor

    shape = torch.Size((*local.shape[:shift], *_shape(param)))
    strides = np.cumprod((1, *(max(size, 1) for size in shape[:0:-1])))[::-1].tolist()
    spread: DTensor = DTensor.from_local(
        local,
        param.device_mesh,
        _placements(param, shift),
        run_check=False,
        shape=shape,
        stride=tuple(strides[: len(shape)]),
    )
    return spread
