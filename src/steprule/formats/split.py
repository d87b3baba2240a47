"""bfloat16 parameters with the bits that they lack kept beside them.

The pair is a float32 number: the bfloat16 one is it, rounded to nearest, and the rest what has to
be added to its bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from steprule.formats import Column
from steprule.formats.random_bits import literal, shifted_right
from steprule.formats.stochastic import INFINITY, MAGNITUDE, QUIET_NAN


@dataclass(frozen=True)
class SplitFormat:
    """A bfloat16 tensor and ``bits`` more of float32's bits: all 16, or 8.

    With 16 nothing is lost: what is read is what was written, bit for bit (of nan there is one, and
    numbers below 2**-134 are 0).
    With 8 what is left over is rounded at random.
    """

    bits: int

    @property
    def name(self) -> str:
        """``split`` or ``split24``."""
        return "split" if self.bits == 16 else f"split{16 + self.bits}"

    @property
    def is_random(self) -> bool:
        """Whether something is left over."""
        return self.bits < 16

    @property
    def columns(self) -> tuple[Column, ...]:
        """The parameter, and the rest of its bits."""
        rest = torch.int16 if self.bits == 16 else torch.int8
        return Column("", torch.bfloat16), Column(self.name, rest)

    @property
    def _dropped(self) -> int:
        return 16 - self.bits

    def read(self, columns: Sequence[Tensor], compute: torch.dtype, shape: torch.Size) -> Tensor:
        """Return the float32 numbers; 0 where the parameter is 0.

        If someone has changed the parameter, the rest of what was there is still less than half
        its gap, but for 0.
        """
        upper = columns[0].contiguous().view(torch.int16).to(torch.int32) << 16
        rest = columns[1].to(torch.int32) << self._dropped
        rest = torch.where((upper & MAGNITUDE) == 0, 0, rest)
        return (upper + rest).view(torch.float32).to(compute)

    def write(self, columns: Sequence[Tensor], value: Tensor, words: Tensor | None = None) -> None:
        """Take ``value`` apart."""
        bits = value.to(torch.float32).contiguous().view(torch.int32)
        bits = torch.where((bits & MAGNITUDE) > INFINITY, QUIET_NAN, bits)
        if self._dropped:
            half = 1 << (self._dropped - 1)
            random = half if words is None else shifted_right(words, 32 - self._dropped)
            bits = (bits + random) & -(1 << self._dropped)
        upper = (bits + 0x8000) & -0x10000
        columns[0].copy_(upper.view(torch.float32))
        columns[1].copy_((bits - upper) >> self._dropped)

    def kernel_read(self, addresses: Sequence[str], index: str, result: str) -> list[str]:
        """Return statements that read element ``index``."""
        rest = f"load_int16({addresses[1]}, {index})"
        if self._dropped:  # a byte is read without its sign
            rest = f"load_uint8({addresses[1]}, {index}) << int32(24)"
            rest = f"{rest} >> int32({24 - self._dropped})"
        return [
            f"upper = load_int16({addresses[0]}, {index}) << int32(16)",
            f"rest = {rest}",
            f"rest = (rest if upper & {literal(MAGNITUDE)} != int32(0) else int32(0))",
            f"{result} = float_of(upper + rest)",
        ]

    def kernel_write(
        self, addresses: Sequence[str], index: str, value: str, word: str = ""
    ) -> list[str]:
        """Return statements that store ``value`` at element ``index``."""
        lines = [
            f"bits = bits_of(float32({value}))",
            # Rounding the payload of a nan could make it a number.
            f"is_nan = bits & {literal(MAGNITUDE)} > {literal(INFINITY)}",
            f"bits = ({literal(QUIET_NAN)} if is_nan else bits)",
        ]
        if self._dropped:
            lines.append(f"bits = bits + lshr({word}, int32({32 - self._dropped}))")
        kind = "int16" if self.bits == 16 else "uint8"
        return [
            *lines,
            f"store_int16({addresses[0]}, {index}, lshr(bits + int32(32768), int32(16)))",
            # What is stored of an integer is its lowest bits: those that are left over.
            f"store_{kind}({addresses[1]}, {index}, lshr(bits, int32({self._dropped})))",
        ]
