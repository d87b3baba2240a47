"""Numbers of 16 bits, rounded up or down at random so that they are right on average.

An update smaller than half the gap to the next number is lost when it is rounded to nearest; at
random it is made as often as it is small.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steprule.formats import Column
from steprule.formats.random_bits import literal, shifted_right

INFINITY = 0x7F800000
MAGNITUDE = 0x7FFFFFFF
QUIET_NAN = 0x7FC00000


@dataclass(frozen=True)
class StochasticFloat:
    """bfloat16 or float16, rounded at random. Infinity and nan stay what they are."""

    dtype: torch.dtype
    is_random = True

    @property
    def name(self) -> str:
        """The dtype's."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def columns(self) -> tuple[Column, ...]:
        """The tensor itself."""
        return (Column("", self.dtype),)

    @property
    def _dropped(self) -> int:
        """Bits of float32 that this dtype lacks."""
        return 16 if self.dtype is torch.bfloat16 else 13

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        """Return the stored numbers."""
        return columns[0].to(compute)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        """Round ``value`` into what is stored."""
        if words is None:
            columns[0].copy_(value)
            return
        bits = value.to(torch.float32).contiguous().view(torch.int32)
        magnitude = bits & MAGNITUDE
        is_small, least = magnitude < _bits(self._least), self._least
        if least:  # the dtype's numbers below this have all one distance
            small = (magnitude.view(torch.float32) + least).view(torch.int32)
            magnitude = torch.where(is_small, small, magnitude)
        magnitude = magnitude + shifted_right(words, 32 - self._dropped)
        magnitude &= -(1 << self._dropped)
        if least:  # what is nearer to the largest number than to infinity stays finite
            is_large = (bits & MAGNITUDE) < _bits(self._too_large)
            magnitude = torch.where(is_large, magnitude.clamp_max(_bits(self._most)), magnitude)
        rounded = magnitude.view(torch.float32)
        if least:
            rounded = torch.where(is_small, rounded - least, rounded)
        rounded = torch.where(bits < 0, -rounded, rounded)
        is_finite = (bits & MAGNITUDE) < INFINITY
        columns[0].copy_(torch.where(is_finite, rounded, bits.view(torch.float32)))

    @property
    def _least(self) -> float:
        """The smallest normal number; 0 for bfloat16, whose is float32's own."""
        return 0.0 if self.dtype is torch.bfloat16 else torch.finfo(self.dtype).tiny

    @property
    def _most(self) -> float:
        return torch.finfo(self.dtype).max

    @property
    def _too_large(self) -> float:
        """From where on infinity is the nearest: half a gap above the largest number."""
        return self._most * (1 + 2.0 ** -(24 - self._dropped))

    def kernel_read(self, addresses: Sequence[str], index: str, result: str) -> list[str]:
        """Return a statement that reads element ``index``."""
        return [f"{result} = load_{self.name}({addresses[0]}, {index})"]

    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]:
        """Return statements that store ``value`` at element ``index``."""
        random = f"lshr({word}, int32({32 - self._dropped}))"
        lines = [
            f"bits = bits_of(float32({value}))",
            f"magnitude = bits & {literal(MAGNITUDE)}",
        ]
        if self.dtype is torch.bfloat16:
            return [
                *lines,
                f"bits = (bits + {random} if magnitude < {literal(INFINITY)} else bits)",
                f"bits = ({literal(QUIET_NAN)} if magnitude > {literal(INFINITY)} else bits)",
                f"store_int16({addresses[0]}, {index}, lshr(bits, int32(16)))",
            ]
        least, mask = self._least, literal(-(1 << self._dropped) & 0xFFFFFFFF)
        return [
            *lines,
            f"is_small = magnitude < {literal(_bits(least))}",
            f"small_bits = bits_of(float_of(magnitude) + float32({least!r}))",
            f"rounded = ((small_bits if is_small else magnitude) + {random}) & {mask}",
            f"least_of_both = smallest(rounded, {literal(_bits(self._most))})",
            f"is_large = magnitude < {literal(_bits(self._too_large))}",
            "rounded = (least_of_both if is_large else rounded)",
            "number = float_of(rounded)",
            f"number = (number - float32({least!r}) if is_small else number)",
            "number = (-number if bits < int32(0) else number)",
            f"number = (number if magnitude < {literal(INFINITY)} else float_of(bits))",
            f"store_{self.name}({addresses[0]}, {index}, number)",
        ]


def _bits(x: float) -> int:
    """Return a number's bits as float32."""
    (bits,) = struct.unpack("<i", struct.pack("<f", x))
    return int(bits)
