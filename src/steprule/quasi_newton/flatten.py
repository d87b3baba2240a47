"""Many parameters as one flat vector, and back.

The parameters may differ in dtype and device, be complex (pairs of reals), have no gradient
(zeros) or a sparse one (made dense). The vector lives on the first parameter's device, in the
widest real dtype among the parameters, float32 at the least.

Of sharded parameters (``DTensor``) it has what this rank has, and nothing is gathered. Each takes
as much room as on the rank that has the most of it, with zeros at the end: so all ranks' vectors
are laid out alike, and what several of them have gets the same bits on each, whatever order or
instructions a loop takes for the place where it stands.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import accumulate

import torch
from torch import Tensor

from steprule.distributed.shards import is_dtensor, local_of, spread_as
from steprule.quasi_newton.ranks import Ranks, SharedRanks
from steprule.quasi_newton.spread import Spread, longest_local


def real_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of a number's parts: float64 for complex128, itself if real."""
    return dtype.to_real() if dtype.is_complex else dtype


@dataclass(frozen=True)
class Layout:
    """Where each parameter lies in the flat vector.

    Args:
        groups: the parameters, a sequence for each parameter group; groups may be empty.
    """

    groups: tuple[tuple[Tensor, ...], ...]

    @classmethod
    def of(cls, groups: Sequence[Sequence[Tensor]]) -> Layout:
        """Return the layout of these parameter groups, in order."""
        return cls(tuple(tuple(group) for group in groups))

    @cached_property
    def params(self) -> tuple[Tensor, ...]:
        """All parameters, in the order of the vector."""
        return tuple(param for group in self.groups for param in group)

    @cached_property
    def is_shared(self) -> bool:
        """Whether any parameter is sharded, or could be: is a ``DTensor``."""
        return any(is_dtensor(param) for param in self.params)

    @cached_property
    def ranks(self) -> Ranks:
        """Who has the rest of the vector."""
        if not self.is_shared:
            return Ranks()
        spread = Spread.of(self.params)
        uncounted: list[tuple[int, int]] = []
        for (start, stop), counts in zip(self._places, spread.counts, strict=True):
            if counts or start == stop:
                continue
            if uncounted and uncounted[-1][1] == start:
                start = uncounted.pop()[0]
            uncounted.append((start, stop))
        return SharedRanks(spread.groups, spread.count, spread.index, tuple(uncounted), self.device)

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """How much of the flat vector each parameter takes: two for each complex number."""
        if not self.is_shared:
            return tuple(_real_numel(param) for param in self.params)
        return tuple(longest_local(param) << param.is_complex() for param in self.params)

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self.lengths)

    @property
    def pads(self) -> list[slice]:
        """The parts of the flat vector that belong to no parameter: always zeros."""
        taken = [_real_numel(local_of(param)) for param in self.params]
        return [
            slice(start + used, stop)
            for (start, stop), used in zip(self._places, taken, strict=True)
            if start + used < stop
        ]

    @cached_property
    def _places(self) -> list[tuple[int, int]]:
        """Where each parameter begins in the flat vector, and where it ends."""
        stops = list(accumulate(self.lengths))
        return list(zip([0, *stops], stops, strict=False))

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the flat vector."""
        kinds = [real_dtype(param.dtype) for param in self.params]
        return reduce(torch.promote_types, kinds, torch.float32 if _all_narrow(kinds) else kinds[0])

    @cached_property
    def device(self) -> torch.device:
        """The device of the flat vector: the first parameter's."""
        return self.params[0].device

    @property
    def is_exact(self) -> bool:
        """Whether parameters hold every value of the flat vector, without rounding."""
        return all(real_dtype(param.dtype) == self.dtype for param in self.params)

    def group_slices(self) -> list[slice]:
        """Return the part of the flat vector that belongs to each group."""
        slices, start, lengths = [], 0, self.lengths
        for group in self.groups:
            stop = start + sum(lengths[: len(group)])
            slices.append(slice(start, stop))
            start, lengths = stop, lengths[len(group) :]
        return slices

    def gather(self) -> Tensor:
        """Return the parameters' values, in a new flat vector."""
        return self.joined([_flat_real(local_of(param).detach()) for param in self.params])

    def gather_grad(self) -> Tensor:
        """Return the gradients, in a new flat vector; zeros where a gradient is None."""
        return self.joined([_flat_grad(param) for param in self.params])

    def scatter(self, flat: Tensor) -> None:
        """Write the flat vector into the parameters, rounding to their dtypes."""
        with torch.no_grad():
            for param, part in zip(self.params, self.split(flat), strict=True):
                local = local_of(param)
                (torch.view_as_real(local) if local.is_complex() else local).copy_(part)

    def split(self, flat: Tensor) -> list[Tensor]:
        """Return views of the flat vector, of the shape of what this rank has of each parameter.

        Complex ones have a last dimension of two. Several vectors may come as rows of a matrix.
        """
        found = []
        for param, (start, _) in zip(self.params, self._places, strict=True):
            local = local_of(param)
            shape = (*local.shape, 2) if local.is_complex() else local.shape
            part = flat[..., start : start + _real_numel(local)]
            found.append(part.view((*flat.shape[:-1], *shape)))
        return found

    def joined(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return a new flat vector of what it has of each parameter, flat too."""
        if self.is_shared:
            pieces = [
                torch.nn.functional.pad(piece, (0, length - piece.numel()))
                if piece.numel() < length
                else piece
                for piece, length in zip(pieces, self.lengths, strict=True)
            ]
        dtype, device = self.dtype, self.device
        joined = torch.cat([piece.to(device=device, dtype=dtype) for piece in pieces])
        # cat of a single tensor may hand back its input on some versions: never alias a parameter.
        return joined.clone() if len(pieces) == 1 and _shares(joined, pieces[0]) else joined


def _all_narrow(kinds: Sequence[torch.dtype]) -> bool:
    return all(torch.finfo(kind).bits < 32 for kind in kinds)


def _real_numel(param: Tensor) -> int:
    return 2 * param.numel() if param.is_complex() else param.numel()


def _flat_real(value: Tensor) -> Tensor:
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value.reshape(-1)


def _flat_grad(param: Tensor) -> Tensor:
    grad = param.grad
    if grad is None:
        local = local_of(param)
        return torch.zeros(_real_numel(local), dtype=real_dtype(param.dtype), device=local.device)
    grad = grad.detach()
    if is_dtensor(grad) or is_dtensor(param):
        grad = local_of(_spread_alike(grad, param))
    return _flat_real(grad.to_dense() if grad.layout != torch.strided else grad)


def _spread_alike(grad: Tensor, param: Tensor) -> Tensor:
    """Return a gradient whose local part is the gradient of the parameter's local part."""
    if not is_dtensor(param):
        return grad.full_tensor() if is_dtensor(grad) else grad
    if not is_dtensor(grad):
        raise TypeError(
            f"the gradient of a sharded parameter of shape {tuple(param.shape)} is a plain tensor "
            f"of shape {tuple(grad.shape)}: wrap it, DTensor.from_local(grad, param.device_mesh, "
            "param.placements)"
        )
    return spread_as(grad, param)


def _shares(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() > 0
