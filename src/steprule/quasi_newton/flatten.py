"""Many parameters as one flat vector, and back.

The parameters may differ in dtype and device, be complex (pairs of reals), have no gradient
(zeros) or a sparse one (made dense). The vector lives on the first parameter's device, in the
widest real dtype among the parameters, float32 at the least.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import torch
from torch import Tensor


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
    def size(self) -> int:
        """Length of the flat vector: two for each complex number."""
        return sum(_real_numel(param) for param in self.params)

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
        slices, start = [], 0
        for group in self.groups:
            stop = start + sum(_real_numel(param) for param in group)
            slices.append(slice(start, stop))
            start = stop
        return slices

    def gather(self) -> Tensor:
        """Return the parameters' values, in a new flat vector."""
        return self._joined([_flat_real(param.detach()) for param in self.params])

    def gather_grad(self) -> Tensor:
        """Return the gradients, in a new flat vector; zeros where a gradient is None."""
        return self._joined([_flat_grad(param) for param in self.params])

    def scatter(self, flat: Tensor) -> None:
        """Write the flat vector into the parameters, rounding to their dtypes."""
        start = 0
        with torch.no_grad():
            for param in self.params:
                real = torch.view_as_real(param) if param.is_complex() else param
                stop = start + real.numel()
                real.copy_(flat[start:stop].view(real.shape))
                start = stop

    def _joined(self, pieces: list[Tensor]) -> Tensor:
        dtype, device = self.dtype, self.device
        joined = torch.cat([piece.to(device=device, dtype=dtype) for piece in pieces])
        # cat of a single tensor may hand back its input on some versions: never alias a parameter.
        return joined.clone() if len(pieces) == 1 and _shares(joined, pieces[0]) else joined


def largest_entry(flat: Tensor) -> float:
    """Return the largest absolute entry, nan if there is one; 0 of nothing."""
    if not flat.numel():
        return 0.0
    low, high = torch.aminmax(flat)  # twenty times as fast as the norm of order infinity
    return max(abs(float(low)), abs(float(high)))


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
        return torch.zeros(_real_numel(param), dtype=real_dtype(param.dtype), device=param.device)
    grad = grad.detach()
    return _flat_real(grad.to_dense() if grad.layout != torch.strided else grad)


def _shares(one: Tensor, other: Tensor) -> bool:
    return one.data_ptr() == other.data_ptr() and one.numel() > 0
