"""Arrays stored as plain numbers of some dtype; complex ones as pairs of reals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import Parameter

from steprule.cached import cached_property
from steprule.formats import Column


@dataclass(frozen=True)
class FloatingFormat:
    """A floating-point dtype, read as float32 or float64 and rounded to nearest on writing."""

    dtype: torch.dtype
    is_random = False

    @property
    def name(self) -> str:
        """The dtype of one real number: float32 for complex64."""
        return str(self.dtype.to_real()).removeprefix("torch.")

    @cached_property
    def columns(self) -> tuple[Column, ...]:
        """The tensor itself."""
        return (Column("", self.dtype),)

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        """Return the stored numbers as reals of dtype ``compute`` (a view where possible)."""
        return real_view(columns[0]).to(compute)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        """Round ``value`` into what is stored."""
        real_view(columns[0]).copy_(value)

    def kernel_load(self, address: str, index: str) -> str:
        """Return an expression for element ``index``."""
        return f"load_{self.name}({address}, {index})"

    def kernel_read(self, addresses: Sequence[str], index: str, result: str) -> list[str]:
        """Return a statement that reads element ``index``."""
        return [f"{result} = {self.kernel_load(addresses[0], index)}"]

    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]:
        """Return a statement that stores ``value`` at element ``index``."""
        return [f"store_{self.name}({addresses[0]}, {index}, {value})"]

    def bytes_for(self, elements: int) -> int:
        """Return the bytes that so many real numbers take."""
        return elements * self.dtype.to_real().itemsize


FLOATING = {
    dtype: FloatingFormat(dtype)
    for dtype in (
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
        torch.complex32,
        torch.complex64,
        torch.complex128,
    )
}


def real_view(tensor: Tensor) -> Tensor:
    """Return ``tensor``, or if it is complex its real and imaginary parts as a last axis."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def compute_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype in which a rule computes for this parameter."""
    is_double = param.dtype in (torch.float64, torch.complex128)
    return torch.float64 if is_double else torch.float32


def wide_dtype(param: Tensor) -> torch.dtype:
    """Return the dtype of an array that loses nothing of what a rule computes: complex or not."""
    dtype = compute_dtype(param)
    return dtype.to_complex() if param.is_complex() else dtype


def has_memory(tensor: Tensor) -> bool:
    """Tell whether a tensor's elements are somewhere: its storage may have been freed.

    Only plain tensors are asked; those of other kinds say themselves what they do without memory.
    """
    return not tells_address(tensor) or tensor.data_ptr() != 0 or tensor._is_zerotensor()


def tells_address(value: object) -> bool:
    """Tell whether something is a plain tensor with elements, whose address is that of memory."""
    return (
        type(value) in (Tensor, Parameter)
        and isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and value.numel() > 0
        and not is_transformed(value)
    )


def transform_level(tensor: Tensor) -> int:
    """Return how many transforms of ``torch.func`` deep a tensor was made, 0 outside of all."""
    return max(0, torch._C._functorch.maybe_get_level(tensor))


def is_transformed(tensor: Tensor) -> bool:
    """Tell whether a transform of ``torch.func`` has wrapped a tensor: it has no memory itself."""
    return torch._C._functorch.is_functorch_wrapped_tensor(tensor)
